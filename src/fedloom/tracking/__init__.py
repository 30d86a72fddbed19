"""The run directory: checkpoints, records, curves, the report and the model card."""
