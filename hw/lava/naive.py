"""The usual way with Lava, for `ashnets bench lava` to be measured against: a network of its own for every sample, its
output taken from the sink value by value.

`python -m hw.lava.naive FOLDER` runs one job: FOLDER holds `network.net`, `job.json` ({"input_shape": [...], "layers":
N}) and `input.npy`, uint8 spikes [T, B, ...]. It writes `output.npy`, uint8 [T, B, ...] in the program's order, and
prints one line for every sample done.
"""

import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from hw.artifact import read_json
from hw.lava.compat import import_netx


def main(folder: Path) -> None:
    job, spikes = read_json(folder / "job.json"), np.load(folder / "input.npy")
    lava = import_netx()
    outputs = []
    for sample in spikes.swapaxes(0, 1):
        outputs.append(run(lava, folder / "network.net", sample, job))
        print(len(outputs), file=sys.stderr, flush=True)
    np.save(folder / "output.npy", np.stack(outputs, axis=1))


def run(lava: SimpleNamespace, net_path: Path, sample: np.ndarray, job: dict) -> np.ndarray:
    """One sample [T, ...] through one network -> uint8 [T, ...]."""
    steps, lag = len(sample), job["layers"]
    sources, sinks = (import_module(f"lava.proc.io.{name}") for name in ("source", "sink"))
    net = lava.hdf5.Network(
        net_config=str(net_path),
        input_shape=tuple(reversed(job["input_shape"])),
        reset_interval=steps,  # or a layer integrates its bias before its input arrives
        reset_offset=1,
    )
    net.net_config.f.close()
    # lava has (W, H, C, T)
    source = sources.RingBuffer(data=np.pad(sample, [(0, lag), *[(0, 0)] * (sample.ndim - 1)]).T)
    sink = sinks.RingBuffer(shape=net.out.shape, buffer=steps + lag)
    source.s_out.connect(net.inp)
    net.out.connect(sink.a_in)
    net.run(
        condition=lava.run_conditions.RunSteps(num_steps=steps + lag),
        run_cfg=lava.run_configs.Loihi2SimCfg(select_tag="fixed_pt"),
    )
    found = sink.data.get()
    net.stop()
    return found.T[lag:].astype(np.uint8)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
