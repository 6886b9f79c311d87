"""Commands about data: data check, data write."""

import shutil
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ashnets.cli.common import done, refuse_beside
from hw.errors import UserError

SHOWN = 10


def data(
    what: Annotated[Literal["check", "write"], tyro.conf.Positional],
    root: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ROOT")],
    /,
    name: Literal["easy_nlvr2", "easy_snli_ve"] | None = None,
    sheet: Path | None = None,
    json: bool = False,
) -> int:
    """Check data on disk, or write data at hand to disk in an official format.

    check: read every record and decode every picture below ROOT once, and count what is there, missing, broken and
    there twice; exit code 1 if anything is wrong. ROOT may say its format: vqa:ROOT. Samples are drawn to --sheet, by
    default ROOT's name with .png, here.

    write: --name to the new folder ROOT, as NLVR2 and SNLI-VE lay out theirs.
    """
    if what == "write":
        refuse_beside("'data write'", sheet=sheet)
        return _write(Path(root), name, json)
    if name is not None:
        raise UserError("--name goes with 'data write'")
    from train.data.check import check_folder
    from train.data.formats import place
    from train.progress import training_progress

    where = place(root)
    if where is None:
        raise UserError(f"{root}: there is no such folder; give the one that holds the annotations and the pictures")
    kind, folder = where
    picture = sheet or Path(f"{folder.absolute().name}.png")
    if picture.resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"{picture}: the sheet would lie among the data, and be taken for a part; give --sheet elsewhere"
        )
    with training_progress(f"check {folder}") as progress:
        reports = check_folder(kind, folder, picture, lambda done, total: progress(done, total, {}))
    wrong = 0
    for report in reports:
        summary = report.summary()
        print(", ".join(f"{key.replace('_', ' ')} {value}" for key, value in summary.items()))
        for problem in report.problems[:SHOWN]:
            print(f"  {problem.kind:>9}  {problem}")
        if len(report.problems) > SHOWN:
            print(f"             and {len(report.problems) - SHOWN} more; --json names all")
        wrong += len(report.problems)
    values = [{**r.summary(), "problems": [str(p) for p in r.problems]} for r in reports]
    done({"root": str(folder), "format": kind, "splits": values, "sheet": str(picture)}, json, f"wrote {picture}")
    return 1 if wrong else 0


def _write(root: Path, name: str | None, json: bool) -> int:
    from train.data.easy_nlvr2 import write_easy_nlvr2
    from train.data.easy_snli_ve import write_easy_snli_ve

    writers = {"easy_nlvr2": write_easy_nlvr2, "easy_snli_ve": write_easy_snli_ve}
    if name is None:
        raise UserError(f"data write needs --name, one of {', '.join(writers)}")
    if root.exists():
        raise UserError(f"{root}: is there already; give a new folder")
    partial = root.with_name(f".{root.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        writers[name](partial)
        partial.rename(root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return done({"wrote": str(root)}, json, f"wrote {root}\nnext: ashnets data check {root}")
