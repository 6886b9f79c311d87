"""Run real samples through the quantized stack, the reference and a backend, and count the spikes that differ. Several
ranks share the samples."""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ashnets.model import AshNet
from hw.simulate import open_backend
from quantize.verify import FLOAT, Joint, verify
from train.data import ImageTextData
from train.evaluate import image_batches, images_of
from train.ranks import gathered, joined_rows, own_part
from train.run import Run, load_model, quantized_stack, run_program
from train.stages import load_split


@torch.no_grad()
def input_spikes(model: AshNet, data: ImageTextData, samples: int | None) -> Iterator[Tensor]:
    """s_in [T, B, C, h, w] of the first `samples` images, a batch at a time; of several ranks each has its part."""
    device = next(model.parameters()).device
    for indices in own_part(list(image_batches(data, samples))):
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
    joints = verify(program, spikes, runtimes, stack=quantized_stack(model), floats=floats, keys=keys)
    return [_of_all_ranks(joint) for joint in joints]


def _of_all_ranks(joint: Joint) -> Joint:
    own = [{"": joint.samples}, joint.mismatches, joint.compared]
    every = [json.loads(said) for said in gathered(json.dumps(own).encode())]
    samples, mismatches, compared = (
        {name: sum(counts[k][name] for counts in every) for name in own[k]} for k in range(len(own))
    )
    return replace(joint, samples=samples[""], mismatches=mismatches, compared=compared)


def simulate_run(
    run: Run, backend: str, samples: int | None, device: torch.device, keys: Path | None = None
) -> tuple[dict[str, float], float]:
    """(mean firing rate by layer, seconds in the backend, of all ranks) of real samples on one backend of the run's
    program."""
    runner = open_backend(backend, run_program(run), keys)
    data, model = load_split(run, "test"), load_model(run, "float", device)
    sums = {"input": 0.0, **{layer.name: 0.0 for layer in run_program(run).synaptic}}
    sizes = dict.fromkeys(sums, 0)
    seconds = 0.0
    for s_in in input_spikes(model, data, samples):
        spikes = s_in.cpu().numpy().astype(np.uint8)
        start = time.monotonic()
        layers = {"input": spikes, **runner.run(spikes, layers=True).layers}
        seconds += time.monotonic() - start
        for name, values in layers.items():
            sums[name] += float(values.sum())
            sizes[name] += values.size
    total = joined_rows([np.array([[*sums.values(), *sizes.values(), seconds]])]).sum(0)
    rates = total[: len(sums)] / total[len(sums) : -1]
    return dict(zip(sums, rates.tolist(), strict=True)), float(total[-1])
