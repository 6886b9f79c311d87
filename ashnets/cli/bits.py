"""Commands that ask what bits cost: sensitivity, search."""

from dataclasses import asdict

from ashnets.cli.common import Device, RunFolder, done


def sensitivity(
    run: RunFolder,
    /,
    ptq: str = "best",
    samples: int | None = 300,
    device: Device = "auto",
    json: bool = False,
) -> int:
    """Rank the layers of the float RUN by what few bits cost: each layer in each format by itself, all others in int8.

    ptq: as in 'quantize'. samples: validation images that the task's score is measured on.
    """
    from quantize.search import scan
    from train.bits import layer_weights, scorer
    from train.report.terminal import sensitivity_table
    from train.run import choose_device, open_run

    opened, where = open_run(run), choose_device(device)
    found = scan(layer_weights(opened, where), scorer(opened, ptq, samples, where))
    print(sensitivity_table(found))
    values = {"run": str(run), "ptq": ptq, "samples": samples, "layers": [asdict(each) for each in found]}
    return done(values, json, f"next: ashnets search {run} --memory 0.5")


def search(
    run: RunFolder,
    /,
    memory: float | None = None,
    drop: float | None = None,
    ptq: str = "best",
    samples: int | None = 300,
    device: Device = "auto",
    json: bool = False,
) -> int:
    """Find the cheapest mixed assignment of bits to the layers of the float RUN under one budget.

    memory: its weights may take this share of int8's bytes, 0.5 for example. drop: the task's score may fall by so many
    points. ptq, samples: as in 'sensitivity'.
    """
    from quantize.search import search as find
    from train.bits import layer_weights, scorer
    from train.report.terminal import trial_table
    from train.run import choose_device, open_run

    opened, where = open_run(run), choose_device(device)
    best, path = find(layer_weights(opened, where), scorer(opened, ptq, samples, where), memory=memory, drop=drop)
    print(trial_table(path))
    values = {"run": str(run), "ptq": ptq, "samples": samples, "best": asdict(best), "path": [asdict(t) for t in path]}
    return done(values, json, f"next: ashnets quantize {run} --quantizer {best.quantizer} --ptq {ptq}")
