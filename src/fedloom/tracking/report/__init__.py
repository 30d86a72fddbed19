"""What comes out of a run for human eyes: one self-contained HTML page, and a picture for a README."""

from fedloom.tracking.report.figures import hero_picture
from fedloom.tracking.report.page import write_report

__all__ = ["hero_picture", "write_report"]
