"""Train two small networks with lava-dl's own slayer, export them, and save what slayer says: run as a process.

    python -m tests.hw.slayer_networks FOLDER

writes dense.net, conv.net, image.net and, for each, <name>.in.npy and <name>.out.npy: spikes [B, T, ...] and slayer's
answer. A process of its own, since slayer and Lava's processes do not share one with torch.
"""

import sys
from pathlib import Path

import h5py
import numpy as np
import torch

from benchmarks.rivals import import_slayer

STEPS = 24
NEURON = {"threshold": 1.25, "current_decay": 0.25, "voltage_decay": 0.1, "scale_grad": 2, "requires_grad": False}


def networks(slayer):
    # delay_shift=False: each layer starts with its input, as in hw.program.
    norm = {"norm": slayer.neuron.norm.MeanOnlyBatchNorm}
    dense = [
        # No norm here: slayer delays a layer's output, netx its input, which is the same without a bias alone.
        slayer.block.cuba.Dense(NEURON, 20, 16, weight_scale=3, delay=True, delay_shift=False),
        slayer.block.cuba.Dense(NEURON | norm, 16, 8, weight_scale=3, delay_shift=False),
    ]
    conv = [
        slayer.block.cuba.Conv(NEURON | norm, 2, 6, 3, stride=2, padding=1, weight_scale=3, delay_shift=False),
        slayer.block.cuba.Conv(NEURON, 6, 6, 3, groups=2, weight_scale=3, delay_shift=False),
        slayer.block.cuba.Flatten(),
        slayer.block.cuba.Dense(NEURON, 6 * 2 * 3, 5, weight_scale=3, delay_shift=False),
    ]
    image = [
        slayer.block.cuba.Input(NEURON | {"current_decay": 1.0}, weight=0.6, bias=0.1, delay_shift=False),
        slayer.block.cuba.Conv(NEURON, 2, 3, 3, weight_scale=3, delay_shift=False),
        slayer.block.cuba.Flatten(),
        slayer.block.cuba.Dense(NEURON, 3 * 4 * 5, 5, weight_scale=3, delay_shift=False),
    ]
    return {
        "dense": (torch.nn.Sequential(*dense), (20,)),
        "conv": (torch.nn.Sequential(*conv), (2, 8, 10)),
        "image": (torch.nn.Sequential(*image), (2, 6, 7)),
    }


def train(net: torch.nn.Module, spikes: torch.Tensor) -> None:
    """A few steps towards a rate, so that weights, means and delays are trained ones."""
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(8):
        rate = net(spikes).mean()
        ((rate - 0.3) ** 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    for module in net.modules():
        if isinstance(getattr(module, "delay", None), torch.nn.Module):
            module.delay.delay.data.uniform_(0, 6)


def main(folder: Path) -> None:
    slayer = import_slayer()
    torch.manual_seed(0)
    for name, (net, shape) in networks(slayer).items():
        spikes = (torch.rand(5, *shape, STEPS) < 0.3).float()
        if name == "image":  # three shades, a picture that stays
            spikes = torch.randint(0, 3, (5, *shape, 1)).repeat_interleave(STEPS, -1) / 2
        net(spikes)
        train(net, spikes)
        net.eval()
        with torch.no_grad():
            out = net(spikes)
        with h5py.File(folder / f"{name}.net", "w") as file:
            for i, layer in enumerate(net):
                layer.export_hdf5(file.create_group(f"layer/{i}"))
        for key, value in (("in", spikes), ("out", out)):
            np.save(folder / f"{name}.{key}.npy", np.moveaxis(value.numpy(), -1, 1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
