"""The report: a `Story` as one self-contained HTML page."""

from pathlib import Path

from hw.artifact import check_place
from train.report.page import page, save
from train.report.story import Story

__all__ = ["Story", "write_report"]


def write_report(story: Story, path: Path) -> Path:
    """Write the report to `path`, whole or not at all, and return `path`."""
    check_place(path, "report.html")
    save(page(story), path)
    return path
