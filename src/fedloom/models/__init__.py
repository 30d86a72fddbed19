"""The base model, its adapter, and the binding of its trainable parameters to rows of a bank."""
