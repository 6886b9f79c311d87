"""What the commands share: their argument types, and how they end."""

import json as json_module
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

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


def leave(code: str | int | None) -> NoReturn:
    """End this process, a rank of torchrun at once: DDP and FSDP keep threads alive, and before Python 3.14 one of them
    that wants an interpreter which is ending aborts the process after all its work (pytorch/pytorch#190489)."""
    if "TORCHELASTIC_RUN_ID" in os.environ and isinstance(code, int | None):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)
    sys.exit(code)
