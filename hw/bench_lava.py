"""Lava from start to stop: samples streamed through one network, against a network of its own for every sample."""

import tempfile
import time
from pathlib import Path

import numpy as np

from hw.artifact import write_json
from hw.bench import Case
from hw.errors import BackendError
from hw.lava.backend import LavaBackend, for_netx, run_job
from hw.netx_file import write_net
from hw.program import SpikingProgram

SECONDS_PER_NETWORK = 60.0  # before the usual way is given up


def end_to_end(program: SpikingProgram, samples: int) -> dict[str, float | int]:
    """Seconds of both ways for the same spikes, Python's and Lava's start included; outputs are compared."""
    spikes = Case(name="end to end", program=program, batch=samples).spikes()
    begin = time.perf_counter()
    truth = LavaBackend(program).run(spikes).output
    streamed = time.perf_counter() - begin
    found, usual = _one_network_each(program, spikes)
    if not np.array_equal(found, truth):
        raise BackendError(f"{int((found != truth).sum())} spikes differ between the two ways through Lava")
    return {
        "samples": samples,
        "steps": program.steps,
        "output_rate": float(truth.mean()),
        "streamed_seconds": streamed,
        "network_per_sample_seconds": usual,
        "times_faster": usual / streamed,
    }


def _one_network_each(program: SpikingProgram, spikes: np.ndarray) -> tuple[np.ndarray, float]:
    shaped = for_netx(program)
    with tempfile.TemporaryDirectory(prefix="ashnets-lava-") as name:
        folder = Path(name)
        write_net(shaped, folder / "network.net")
        np.save(folder / "input.npy", spikes.reshape(*spikes.shape[:2], *shaped.input_shape))
        write_json(folder / "job.json", {"input_shape": shaped.input_shape, "layers": len(program.synaptic)})
        begin = time.perf_counter()
        run_job(folder, SECONDS_PER_NETWORK * (1 + spikes.shape[1]), "hw.lava.naive")
        seconds = time.perf_counter() - begin
        output = np.load(folder / "output.npy")
    return output.reshape(*spikes.shape[:2], *program.output_shape), seconds
