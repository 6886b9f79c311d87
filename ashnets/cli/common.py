"""What the commands share: their argument types, and how they end."""

import json as json_module
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from hw.errors import UserError

RunFolder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
Device = Literal["auto", "cpu", "cuda"]


ARGUMENTS = ConstructorRegistry()
"""How what tyro does not know is written on the command line."""


@ARGUMENTS.primitive_rule
def _weights(kind: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[dict[str, float]] | None:
    """`--train.objectives itc 1.0 stua 0.5`: these and no others."""
    if kind.type_origin is not dict:
        return None
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="[NAME WEIGHT ...]",
        instance_from_str=_weighted,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda weights: [word for name, weight in weights.items() for word in (name, str(weight))],
    )


def _weighted(words: list[str]) -> dict[str, float]:
    try:
        return {name: float(weight) for name, weight in zip(words[::2], words[1::2], strict=True)}
    except ValueError:
        raise ValueError(f"'{' '.join(words)}' are no names with a weight each, as in itc 1.0 scl 0.2") from None


def done(values: dict[str, Any], json: bool, line: str | None = None) -> int:
    """Print the last lines of a command that went well; `values` as JSON if asked for."""
    if line:
        print(line)
    if json:
        print(json_module.dumps(values, allow_nan=False))
    return 0


def check_samples(samples: int | None, option: str = "--samples") -> None:
    """`UserError` where the option asks for none."""
    if samples is not None and samples < 1:
        raise UserError(f"{option} is {samples}; run at least 1 sample")


def refuse_beside(what: str, **given: object) -> None:
    """`UserError` where an option was given that says nothing to `what`; one that was not is None."""
    for name, value in given.items():
        if value is not None:
            raise UserError(f"--{name} says nothing to {what}; leave it out")


def refuse_keys(keys: Path | None, backend: str) -> None:
    """`UserError` where keys are given for a backend that runs here."""
    if "://" not in backend:
        refuse_beside(f"backend '{backend}', which is no worker's address", keys=keys)


def leave(code: str | int | None) -> NoReturn:
    """End this process, a rank of torchrun at once: DDP and FSDP keep threads alive, and before Python 3.14 one of them
    that wants an interpreter which is ending aborts the process after all its work (pytorch/pytorch#190489)."""
    if "TORCHELASTIC_RUN_ID" in os.environ and isinstance(code, int | None):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)
    sys.exit(code)
