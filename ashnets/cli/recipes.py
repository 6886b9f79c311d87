"""The command about whole configurations: recipe."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from ashnets.cli.common import done
from hw.errors import UserError


def recipe(
    name: Annotated[
        Literal["tiny", "small", "base-4m", "base-retrieval", "base-vqa", "base-nlvr2", "base-snli_ve"],
        tyro.conf.Positional,
    ],
    /,
    out: Path | None = None,
    cost: bool = False,
    json: bool = False,
) -> int:
    """Write a whole configuration to the file --out, to be edited and passed to 'ashnets train RUN --config FILE', or
    to 'ashnets finetune SOURCE RUN --config FILE' where a recipe starts from a pre-trained run.

    cost: count a real step of two images, and say what training costs on paper: parameters, operations, memory,
    GPU-hours.
    """
    from hw.artifact import write_json
    from train.config import to_dict
    from train.recipes import ANSWERS, RECIPES, TUNED

    config = RECIPES[name]()
    if out is None and not cost:
        raise UserError(f"nothing to do; give --out FILE, or --cost to know what {name} costs")
    values: dict = {"recipe": name}
    if cost:
        from train.cost import cost as count

        values |= count(config, answers=ANSWERS.get(name, 2)).summary()
        for key, value in values.items():
            print(
                f"{key.replace('_', ' '):>22}  {value:,}" if isinstance(value, int | float) else f"{key:>22}  {value}"
            )
    if out is not None:
        write_json(out, to_dict(config))
        command = "finetune SOURCE RUN" if name in TUNED else "train RUN"
        print(f"wrote {out}\nnext: ashnets {command} --config {out}")
    return done(values, json)
