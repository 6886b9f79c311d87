"""Measures the rivals of one environment at a parent's word.

    PYTHON -m benchmarks.worker

reads a JSON object a line, {"do": a function of `ANSWERS`, and what it takes}, and answers with one a line. Needs torch
and the rivals' library alone, nothing of ours where the rival is not ours.
"""

import ctypes
import json
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.rivals import RIVALS, Layer, data, layer_of

libc = ctypes.CDLL(None)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def forward_backward(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x, g = data(name, shape, dtype)
    s = layer_of(name, shape)(x)
    return s.detach(), torch.autograd.grad(s, x, g)[0]


def result(name: str, shape: list[int], dtype: str, file: str) -> dict:
    """Spikes and the gradient of x, both [T, B, N], into a file."""
    s, grad = forward_backward(name, tuple(shape), getattr(torch, dtype))
    axes = RIVALS[name].axes
    np.savez(file, s=s.permute(axes).bool().numpy(), grad=grad.permute(axes).numpy() * RIVALS[name].gain)
    return {}


def taken(work: Callable[[], object], least: float) -> list[float]:
    """Seconds of each time, behind one that fills the caches: three times, and on until `least` seconds are over."""
    found = []
    while len(found) < 4 or sum(found[1:]) < least:
        start = perf_counter()
        work()
        found.append(perf_counter() - start)
    return found[1:]


def seconds(name: str, shape: list[int], threads: int, least: float) -> dict:
    """Median of passes forward and backward, as many as `taken` makes."""
    torch.set_num_threads(threads)
    return {"seconds": median(taken(lambda: forward_backward(name, tuple(shape), torch.float32), least))}


def peak(name: str, shape: list[int]) -> dict:
    """Bytes of memory that a pass forward and backward takes at most, beside its input, its results among them. What it
    is measured in is slow from then on: each tensor's memory comes from the system and goes back to it."""
    libc.mallopt(M_MMAP_THRESHOLD, 1 << 16)
    status = Path("/proc/self/status")

    def kib(key: str) -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(key))

    for _ in range(2):
        forward_backward(name, tuple(shape), torch.float32)
    before = kib("VmRSS:")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is of the pages in use from now on
    forward_backward(name, tuple(shape), torch.float32)
    return {"bytes": 1024 * (kib("VmHWM:") - before)}


class Net(nn.Module):
    """Two convolutions, norms and layers of neurons; pictures [T, B, 3, H, W] -> [B, 10]."""

    def __init__(self, first: Layer, second: Layer, layout: torch.memory_format) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(32), nn.BatchNorm2d(64)])
        self.neurons, self.head = (first, second), nn.Linear(64, 10)
        self.layout = layout
        self.to(memory_format=layout)

    def forward(self, x: Tensor) -> Tensor:
        steps, pictures = x.shape[:2]
        x = x.flatten(0, 1).contiguous(memory_format=self.layout)
        for conv, norm, neurons in zip(self.convs, self.norms, self.neurons, strict=True):
            x = neurons(norm(conv(x)).unflatten(0, (steps, pictures))).flatten(0, 1)
        return self.head(x.mean((-2, -1)).unflatten(0, (steps, pictures)).mean(0))


@cache
def net_of(name: str, channels_last: bool) -> tuple[Net, torch.optim.Optimizer]:
    torch.manual_seed(0)
    neurons = [nn.ReLU() if name == "ReLU" else RIVALS[name].layer() for _ in range(2)]
    net = Net(*neurons, torch.channels_last if channels_last else torch.contiguous_format)
    return net, torch.optim.SGD(net.parameters(), lr=0.01)


def net_seconds(name: str, channels_last: bool, shape: list[int], threads: int, least: float) -> dict:
    """As `seconds`, of a training step of a network with the rival's neurons."""
    torch.set_num_threads(threads)
    net, optimizer = net_of(name, channels_last)
    x, labels = torch.randn(shape, generator=torch.Generator().manual_seed(0)), torch.arange(shape[1]) % 10

    def step() -> None:
        nn.functional.cross_entropy(net(x), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return {"seconds": median(taken(step, least))}


def triad(threads: int) -> dict:
    """Bytes a second of a = b + c on arrays that no cache holds: what is read and written, 12 bytes an element."""
    torch.set_num_threads(threads)
    a, b, c = torch.ones(3, 2**24).unbind()
    return {"bytes_per_second": 12 * len(a) / min(taken(lambda: torch.add(b, c, out=a), 0))}


ANSWERS = {f.__name__: f for f in (result, seconds, peak, net_seconds, triad)}


def main() -> None:
    # Memory that a pass gives back is kept for the next, as in the midst of a training: to fetch it from the system
    # anew would take longer than our layers do.
    libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)
    libc.mallopt(M_MMAP_THRESHOLD, 1 << 25)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    for line in sys.stdin:
        asked = json.loads(line)
        answer = ANSWERS[asked.pop("do")](**asked)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
