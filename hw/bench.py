"""How fast the simulators are, side by side with Lava's process simulation on the same program and spikes.

Ratios only mean something within one run on one machine. Every timing is of a run whose output was compared with
Lava's, spike for spike.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from hw.errors import BackendError
from hw.lava.backend import LavaBackend
from hw.program import Conv, Dense, Flatten, SpikingProgram
from hw.simulate import open_backend

SIMULATORS = ("reference", "events", "batched")
_DECAYS: dict[str, Any] = {"decay_u_int": np.array(1024), "decay_v_int": np.array(512)}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One program at one batch size: `steps` is T."""

    name: str
    program: SpikingProgram
    batch: int
    density: float = 0.1

    def spikes(self) -> np.ndarray:
        rng = np.random.default_rng(0)
        shape = (self.program.steps, self.batch, *self.program.input_shape)
        return (rng.random(shape) < self.density).astype(np.uint8)


def dense_program(sizes: tuple[int, ...], steps: int) -> SpikingProgram:
    """Dense layers of random int8 weights, thresholds such that about a tenth of the neurons spikes."""
    rng = np.random.default_rng(1)
    layers = tuple(
        Dense(
            name=f"fc{i}",
            weight_int=rng.integers(-127, 128, (out, inputs)),
            v_th_mant=np.array(int(60 * inputs**0.5)),
            **_DECAYS,
        )
        for i, (inputs, out) in enumerate(pairwise(sizes))
    )
    return SpikingProgram(input_shape=(sizes[0],), steps=steps, layers=layers)


def conv_program(steps: int) -> SpikingProgram:
    """2x16x16 -> 8x16x16 -> 10."""
    rng = np.random.default_rng(2)
    kernel, weight = rng.integers(-127, 128, (8, 2, 3, 3)), rng.integers(-127, 128, (10, 2048))
    conv = Conv(name="conv", weight_int=kernel, padding=(1, 1), v_th_mant=np.array(300), **_DECAYS)
    dense = Dense(name="fc", weight_int=weight, v_th_mant=np.array(2500), **_DECAYS)
    return SpikingProgram(input_shape=(2, 16, 16), steps=steps, layers=(conv, Flatten(), dense))


def cases(extra: SpikingProgram | None = None) -> list[Case]:
    """The cases of `ashnets bench simulate`; `extra` is a program of the user's."""
    found = [
        Case(name=name, program=program(steps), batch=batch)
        for name, program in (
            ("dense 256-256-64", lambda t: dense_program((256, 256, 64), t)),
            ("conv 2-8-10", conv_program),
        )
        for batch, steps in ((1, 512), (64, 16))
    ]
    if extra is not None:
        found += [Case(name="given program", program=extra, batch=batch) for batch in (1, 64)]
    return found


def measure(case: Case, seconds: float = 1.0) -> dict[str, float | str | int]:
    """us per sample and step of each simulator and of Lava's bare step loop, and how many times faster each is."""
    spikes = case.spikes()
    lava = LavaBackend(case.program)
    truth = lava.run(spikes).output
    sample_steps = spikes.shape[0] * spikes.shape[1]
    steps_run = sample_steps + len(case.program.synaptic) - 1  # all but the first
    lava_us = 1e6 * lava.seconds["steps"] / steps_run
    row: dict[str, float | str | int] = {
        "case": case.name,
        "batch": case.batch,
        "steps": case.program.steps,
        "output_rate": float(truth.mean()),
        "lava_us": lava_us,
        "lava_start_seconds": lava.seconds["start"],
    }
    for name in SIMULATORS:
        backend = open_backend(name, case.program)
        found = backend.run(spikes).output  # also compiles
        if not np.array_equal(found, truth):
            raise BackendError(f"{case.name}: {int((found != truth).sum())} spikes of '{name}' differ from Lava's")
        us = 1e6 * best_seconds(lambda backend=backend: backend.run(spikes), seconds) / sample_steps
        row |= {f"{name}_us": us, f"{name}_times_lava": lava_us / us}
    return row


def best_seconds(call: Callable[[], object], seconds: float) -> float:
    """The shortest of as many calls as fit, at least 3."""
    best, end, calls = float("inf"), time.perf_counter() + seconds, 0
    while calls < 3 or time.perf_counter() < end:
        begin = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - begin)
        calls += 1
    return best
