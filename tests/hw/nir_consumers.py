"""Run NIR files in another simulator: a script for that one's environment, which holds nothing of ours.

    python tests/hw/nir_consumers.py CONSUMER FILE.nir ...

reads spikes [T, ...] from FILE.npy and writes FILE.CONSUMER.npz: the spikes [T, ...] of each layer of neurons by its
name. CONSUMER: one of `CONSUMERS`. A step goes in as it stands: with a batch's axis, or as one sample without.
"""

import sys
from functools import partial
from pathlib import Path

import nir
import numpy as np
import torch

DT = 1e-4


def spikingjelly(graph: nir.NIRGraph) -> torch.nn.Module:
    from spikingjelly.activation_based.nir_exchange import import_from_nir

    return import_from_nir(graph, dt=DT)


def snntorch(graph: nir.NIRGraph) -> torch.nn.Module:
    from snntorch.import_nir import import_from_nir

    return import_from_nir(graph)  # of dt 1e-4, always


def norse(graph: nir.NIRGraph, **options: float) -> torch.nn.Module:
    from norse.torch import from_nir

    return from_nir(graph, **options)


CONSUMERS = {
    "spikingjelly": spikingjelly,
    "snntorch": snntorch,
    "norse": partial(norse, dt=DT),
    "norse-default": norse,  # of dt 1e-3
}


def run(network: torch.nn.Module, names: list[str], spikes: torch.Tensor) -> dict[str, np.ndarray]:
    heard: dict[str, list[np.ndarray]] = {name: [] for name in names}

    def record(name: str, module: object, given: object, output: object) -> None:
        heard[name].append((output[0] if isinstance(output, tuple) else output).numpy())

    for name in names:
        network.get_submodule(name).register_forward_hook(partial(record, name))
    state = None
    for s in spikes:
        _, state = network(s, state)
    return {name: np.stack(values) for name, values in heard.items()}


def main(consumer: str, *files: str) -> None:
    for file in map(Path, files):
        graph = nir.read(file)
        names = [name for name, node in graph.nodes.items() if isinstance(node, nir.CubaLIF)]
        spikes = torch.from_numpy(np.load(file.with_suffix(".npy"))).float()
        with torch.no_grad():
            found = run(CONSUMERS[consumer](graph), names, spikes)
        np.savez(file.with_suffix(f".{consumer}.npz"), **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
