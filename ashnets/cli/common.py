"""What the commands share: their argument types, and how they end."""

import json as json_module
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

RunFolder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
Device = Literal["auto", "cpu", "cuda"]


def done(values: dict[str, Any], json: bool, line: str | None = None) -> int:
    """Print the last lines of a command that went well; `values` as JSON if asked for."""
    if line:
        print(line)
    if json:
        print(json_module.dumps(values, allow_nan=False))
    return 0
