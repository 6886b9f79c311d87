"""Run real samples through the quantized stack, the reference and a backend, and count the spikes that differ."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ashnets.model import AshNet
from hw.simulate import open_backend
from quantize.verify import FLOAT, Joint, verify
from train.data import ImageTextData
from train.evaluate import image_batches, images_of
from train.run import Run, load_model, quantized_stack, run_program
from train.stages import load_split


@torch.no_grad()
def input_spikes(model: AshNet, data: ImageTextData, samples: int | None) -> Iterator[Tensor]:
    """s_in [T, B, C, h, w] of the first `samples` images, a batch at a time."""
    device = next(model.parameters()).device
    for indices in image_batches(data, samples):
        yield model.code(images_of(data, indices, device))


def verify_run(
    run: Run, runtimes: Mapping[str, int | None], device: torch.device, keys: Path | None = None
) -> list[Joint]:
    """The joints of a quantized run, on the test split. runtimes: as in `quantize.verify.verify`."""
    program = run_program(run)
    model = load_model(run, "qat", device)
    floats = load_model(run, "float", device).abstract.stack if FLOAT in runtimes else None
    limits = list(runtimes.values())
    samples = None if None in limits else max(limit for limit in limits if limit is not None)
    spikes = input_spikes(model, load_split(run, "test"), samples)
    return verify(program, spikes, runtimes, stack=quantized_stack(model), floats=floats, keys=keys)


def simulate_run(
    run: Run, backend: str, samples: int | None, device: torch.device, keys: Path | None = None
) -> tuple[dict[str, float], float]:
    """(mean firing rate by layer, seconds in the backend) of real samples on one backend of the run's program."""
    runner = open_backend(backend, run_program(run), keys)
    data, model = load_split(run, "test"), load_model(run, "float", device)
    sums: dict[str, float] = {}
    sizes: dict[str, int] = {}
    seconds = 0.0
    for s_in in input_spikes(model, data, samples):
        spikes = s_in.cpu().numpy().astype(np.uint8)
        start = time.monotonic()
        layers = {"input": spikes, **runner.run(spikes, layers=True).layers}
        seconds += time.monotonic() - start
        for name, values in layers.items():
            sums[name] = sums.get(name, 0.0) + float(values.sum())
            sizes[name] = sizes.get(name, 0) + values.size
    return {name: sums[name] / sizes[name] for name in sums}, seconds
