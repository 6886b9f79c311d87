"""The command that trains variants and compares them: ablate."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import tyro

from ashnets.cli.common import Device, done
from ashnets.cli.models import Preset
from ashnets.config import PRESETS


def ablate(
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    /,
    tasks: tuple[str, ...] = ("retrieval", "vqa:easy_vqa_new"),
    variants: tuple[str, ...] = (),
    seeds: int = 3,
    steps: int | None = None,
    chain: bool = False,
    preset: Preset = "tiny",
    device: Device = "auto",
    json: bool = False,
) -> int:
    """Train variants of the model over seeds with equal budgets, and print what each part is worth. All runs are kept
    in the folder OUT; the same command goes on where it was interrupted.

    tasks: retrieval, vqa, nlvr2, snli_ve, or NAME:DATASET for other data than a task has at hand. chain: each starts
    where the one before it ended; by default, where retrieval did.

    variants: both, ann (r = 0), ann_scl, ann_equal (with as many parameters), spikes, codebook, no_scl, no_stua,
    text_spike, reads_concrete, t1, t2, t8; by default all. steps: of each training, by default the recipes'.
    """
    from hw.artifact import staged_file
    from train.ablation import VARIANTS, table
    from train.ablation import ablate as run_ablation
    from train.ranks import on_first
    from train.run import choose_device

    chosen = variants or tuple(VARIANTS)
    rows = run_ablation(
        out, tasks, chosen, seeds, choose_device(device), model=PRESETS[preset](), steps=steps, chain=chain
    )
    text = table(rows)
    path = out / "ablation.txt"

    def write() -> None:
        with staged_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    on_first(write)
    print(text)
    return done({"ablation": str(out), "rows": [asdict(row) for row in rows]}, json, f"wrote {path}")
