"""How fast the simulators are, side by side with Lava's process simulation on the same program and spikes.

Ratios only mean something within one run on one machine. Every timing is of a run whose output was compared with
Lava's, spike for spike.

How near `events` comes to what the machine can do is told as a share of the bandwidth of its first-level caches. The
least that an event-driven simulator moves to and from there:

    bytes = 10 synaptic operations + 21 neuron updates + 1 inputs

A synaptic operation reads a weight (2) and reads and writes a sum (8), an update reads a sum (4), reads and writes u
and v (16) and writes a spike (1), an input is looked at. The bandwidth is measured in the same run, with a = b + c.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numba
import numpy as np

from hw.energy import count
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

    @property
    def sample_steps(self) -> int:
        return self.program.steps * self.batch


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
    steps_run = case.sample_steps + len(case.program.synaptic) - 1  # all but the first
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
        us = us_per_step(name, case, spikes, truth, "Lava's", seconds)
        row |= {f"{name}_us": us, f"{name}_times_lava": lava_us / us}
    least = (
        least_bytes(case.program, spikes)
        / case.sample_steps
        / cache_bandwidth(min(case.batch, numba.get_num_threads()))
    )
    return row | {"events_limit_us": 1e6 * least, "events_share_of_limit": 1e6 * least / float(row["events_us"])}


def us_per_step(name: str, case: Case, spikes: np.ndarray, truth: np.ndarray, whose: str, seconds: float) -> float:
    """us per sample and step of a backend whose output is `truth`, and `BackendError` where it is not. whose: the
    truth's owner, in words."""
    backend = open_backend(name, case.program)
    found = backend.run(spikes).output  # also compiles
    if not np.array_equal(found, truth):
        raise BackendError(f"{case.name}: {int((found != truth).sum())} spikes of '{name}' differ from {whose}")
    return 1e6 * best_seconds(lambda: backend.run(spikes), seconds) / case.sample_steps


def least_bytes(program: SpikingProgram, spikes: np.ndarray) -> int:
    """Bytes to and from a first-level cache, of the whole run."""
    layers = open_backend("events", program).run(spikes, layers=True).layers
    counts = count(program, spikes, layers)
    looked_at = [spikes.size, *(values.size for values in layers.values())][:-1]
    return 10 * (counts.total("synops") or 0) + 21 * (counts.total("updates") or 0) + sum(looked_at)


def cache_bandwidth(threads: int) -> float:
    """Bytes per second of a = b + c on int32, in the first-level caches of so many cores together."""
    rounds = 20_000
    arrays = np.ones((3, threads, 2048), np.int32)  # 24 KB a thread
    _triad(arrays, 1)
    return 12 * threads * arrays.shape[2] * rounds / best_seconds(lambda: _triad(arrays, rounds), 0.2)


@numba.njit(cache=True, nogil=True, parallel=True)
def _triad(arrays, rounds):
    for thread in numba.prange(arrays.shape[1]):
        a, b, c = arrays[0, thread], arrays[1, thread], arrays[2, thread]
        for r in range(rounds):
            for k in range(a.shape[0]):
                a[k] = b[k] + c[k]
            b[r % a.shape[0]] += 1  # or the rounds would be merged into one


def best_seconds(call: Callable[[], object], seconds: float) -> float:
    """The shortest of as many calls as fit, at least 3."""
    best, end, calls = float("inf"), time.perf_counter() + seconds, 0
    while calls < 3 or time.perf_counter() < end:
        begin = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - begin)
        calls += 1
    return best
