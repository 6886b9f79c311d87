"""Export a program: a folder that is written whole and checked before it is there, or not at all."""

from pathlib import Path
from typing import Any

import numpy as np

from hw.artifact import open_artifact, staged_artifact
from hw.errors import BackendError, UserError
from hw.exchange.formats import FORMATS, Format, Sample, difference
from hw.program import SpikingProgram
from hw.simulate.base import open_backend

KIND = "export"


def named(format: str) -> Format:
    """The format of that name, or `UserError`."""
    if format not in FORMATS:
        raise UserError(f"format '{format}' is not known; choose from {', '.join(FORMATS)}")
    return FORMATS[format]


def export_program(program: SpikingProgram, folder: Path, format: str, spikes: np.ndarray) -> dict[str, Any]:
    """Write `folder` in one of `FORMATS`; returns the manifest's meta.

    spikes: [T, B, *input_shape], of real samples if there are any. The file is read back before it is called written:
    its integers must be the program's, and every spike of every layer the reference's, run by what the file is for.
    """
    kind = named(format)
    meta: dict[str, Any] = {"format": format, "file": kind.file, "program": describe(program)}
    with staged_artifact(folder, KIND, meta) as temporary:
        path = temporary / kind.file
        kind.write(program, path)
        found = kind.read(path, Sample.of(program))
        if (odd := difference(program, found)) is not None:
            raise BackendError(f"{folder}: the {format} file does not hold the program's integers: {odd}")
        meta["checked"] = {"samples": spikes.shape[1], **_compare(program, found, kind.runtime, spikes, format)}
        meta["bytes"] = path.stat().st_size
    return meta


def read_export(folder: Path) -> tuple[SpikingProgram, str]:
    """(program, format) of a folder that `export_program` wrote. The file's integers are what runs."""
    meta = open_artifact(folder, KIND).meta
    try:
        format, about = meta["format"], meta["program"]
        sample = Sample(tuple(about["input_shape"]), about["steps"], about["input_bits"])
        kind = named(format)
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / 'manifest.json'}: says no format and program ({error}); export it anew") from error
    return kind.read(folder / kind.file, sample), format


def describe(program: SpikingProgram) -> dict[str, Any]:
    """What a manifest says of a program: shapes, and bits and bytes of the weights of each layer."""
    layers = [
        {
            "name": layer.name,
            "type": type(layer).__name__.lower(),
            "shape": list(program.shapes[layer.name]),
            "weights": int(layer.weight_int.size),
            "weight_bits": layer.weight_bits,
        }
        for layer in program.synaptic
    ]
    sample = Sample.of(program)._asdict()
    return {**sample, "input_shape": list(program.input_shape), "layers": layers}


def random_spikes(program: SpikingProgram, samples: int, seed: int = 0) -> np.ndarray:
    """Spikes [T, B, *input_shape] at rates between 0 and 1, one for each sample, where no real ones are at hand."""
    rng = np.random.default_rng(seed)
    shape = (program.steps, samples, *program.input_shape)
    rates = np.linspace(0, 1, samples + 2)[1:-1].reshape(1, -1, *[1] * len(program.input_shape))
    spikes = (rng.random(shape) < rates).astype(np.int64)
    if program.input_bits:
        limit = 1 << program.input_bits
        spikes *= rng.integers(1 - limit, limit, shape)
    return spikes


def _compare(
    program: SpikingProgram, found: SpikingProgram, runtime: str, spikes: np.ndarray, format: str
) -> dict[str, int]:
    truth = open_backend("reference", program).run(spikes, layers=True).layers
    layers = open_backend(runtime, found).run(spikes, layers=True).layers
    pairs = list(zip(truth.values(), layers.values(), strict=True))  # a .net file holds no names
    wrong = sum(int(np.count_nonzero(a != b)) for a, b in pairs)
    compared = sum(a.size for a, _ in pairs)
    if wrong:
        raise BackendError(f"the {format} file gives {wrong} of {compared} spikes otherwise than the reference")
    return {"spikes": compared, "mismatching_spikes": wrong}
