"""The report: one HTML file with all that a person needs to choose a checkpoint. It loads nothing from anywhere else."""

from tasks.pictures.page.content import Line, Report
from tasks.pictures.page.document import html_of, is_whole

__all__ = ["Line", "Report", "html_of", "is_whole"]
