"""The report: a `Story` as one self-contained HTML page."""

from pathlib import Path

from hw.artifact import staged_file
from hw.errors import UserError
from train.report.page import page
from train.report.story import Story

__all__ = ["Story", "write_report"]


def write_report(story: Story, path: Path) -> Path:
    """Write the report to `path`, whole or not at all, and return `path`."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give the path of a file, for example {path / 'report.html'}")
    text = page(story)
    with staged_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
