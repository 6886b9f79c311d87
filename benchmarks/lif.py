"""Spiking layers against their peers: time, memory and the memory's bandwidth, side by side, on processors.

    python -m benchmarks.lif [--steps 4 8 32] [--threads 1 2] [--rounds 7] [--json]

One process for each library's environment (`make .peers/.ready` builds them), and one of them at work at a time. First
spikes and gradients are compared: what is not the model that it is said to be is not timed. Then rounds, in each of
which every rival takes its turn, so that a drift of the machine's speed meets all; quoted are medians over rounds of
the ratio to ours with the same surrogate.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ashnets.neurons import LIFParams, cuba_lif_loop
from ashnets.surrogate import SURROGATES
from benchmarks.rivals import GRID, KEEP_U, KEEP_V, RIVALS, data
from hw import Dense
from hw.errors import UserError
from hw.simulate.reference import lif_step
from quantize.integer_lif import quantize_params
from train.report.terminal import aligned

ROOT = Path(__file__).parents[1]
BATCH, NEURONS = 32, 4096
COMPARED = (8, 4, 512)
PICTURES = (8, 16, 3, 32, 32)
LAST = ("ours", "ours, learned decays", "ReLU", "plain loop", "spikingjelly LIFNode", "spikingjelly CUBALIFNode")
NETS = {name: (name, True) for name in LAST} | {f"{name}, channels first": (name, False) for name in LAST[-2:]}
"""(neurons, channels last?) of the networks; channels first is how a network is made where nobody asks."""
OURS = {"rectangle": "ours", "arctan": "ours, arctan", "fast_sigmoid": "ours, fast sigmoid", "own": "ours"}
"""What a rival's time is compared with, by its surrogate."""
BYTES = {"rectangle": 16.5, "arctan": 20.0, "fast_sigmoid": 20.0}
"""That a pass forward and backward of ours has to read and write for each element, by surrogate: x, s and both their
gradients; x once more, or two bits written and read."""
TURN = 0.2
"""Seconds that a turn takes at least: a single pass of a small layer would be timed with cold caches."""
SETTLE = 0.02
"""Seconds between turns, in which the threads of the last one stop to wait for work."""

Ask = Callable[..., dict[str, Any]]
"""Asks a process: (its environment, what to do, arguments)."""


@contextmanager
def processes() -> Iterator[Ask]:
    """A process for each environment."""
    names = dict.fromkeys(rival.environment for rival in RIVALS.values())
    pythons = {name: ROOT / ".peers" / name / "bin" / "python" if name else Path(sys.executable) for name in names}
    if missing := [python for python in pythons.values() if not python.exists()]:
        raise UserError(f"{missing[0].relative_to(ROOT)} is not there; `make bench` builds it")
    with ExitStack() as stack:
        opened = {}
        for name, python in pythons.items():
            errors = stack.enter_context(tempfile.TemporaryFile("w+"))
            process = subprocess.Popen(
                [str(python), "-m", "benchmarks.worker"],
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=ROOT,
            )
            stack.enter_context(process)  # which closes its input, and so ends it
            opened[name] = process, errors

        def ask(environment: str, do: str, **given: Any) -> dict[str, Any]:
            time.sleep(SETTLE)
            process, errors = opened[environment]
            with suppress(BrokenPipeError):  # then there is no answer either
                print(json.dumps({"do": do, **given}), file=process.stdin, flush=True)
            if answer := process.stdout.readline():
                return json.loads(answer)
            errors.seek(0)
            told = errors.read().strip().splitlines()[-1:]
            raise UserError(f"{environment or 'ours'}, asked for {do} of {given}, ended: {''.join(told)}")

        yield ask


def truth(name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Spikes of the model that a rival is said to be, by the plain loop in double precision or the chip's readable
    recursion, and the gradient of x where ours is its too."""
    rival = RIVALS[name]
    x, g = (tensor.detach() for tensor in data("plain loop", COMPARED, torch.float64))
    decays = (1 - KEEP_U if rival.current else 1.0, 1 - KEEP_V)
    p = LIFParams(*(torch.tensor(v, dtype=torch.float64) for v in (*decays, 1.0, 0.0)))
    if rival.whole:
        return chips_spikes(x, p), None
    s = cuba_lif_loop(x.requires_grad_(), p, SURROGATES[rival.surrogate])
    gradient = None if rival.reset_passes else torch.autograd.grad(s, x, g)[0].numpy()
    return s.detach().bool().numpy(), gradient


def chips_spikes(x: torch.Tensor, p: LIFParams) -> np.ndarray:
    whole = {name: value.numpy() for name, value in quantize_params(p, torch.tensor(GRID))._asdict().items()}
    layer = Dense(name="neurons", weight_int=np.ones((x.shape[2], 1), np.int64), **whole)
    u = v = np.zeros(x.shape[1:], np.int64)
    spikes = []
    for a in (x / GRID).long().numpy():
        s, u, v = lif_step(a, u, v, layer)
        spikes.append(s)
    return np.stack(spikes)


def agreement(ask: Ask, folder: Path) -> dict[str, str]:
    """What each rival agrees in. Errors: UserError where its spikes or gradients are not those of its model."""
    told, file = {}, str(folder / "result.npz")
    for name, rival in RIVALS.items():
        dtype = "float32" if rival.whole else "float64"
        ask(rival.environment, "result", name=name, shape=COMPARED, dtype=dtype, file=file)
        its = np.load(file)
        spikes, gradient = truth(name)
        if wrong := int((its["s"] != spikes).sum()):
            raise UserError(f"{name}: {wrong} of {spikes.size} spikes are not those of its model; it is not timed")
        if gradient is None:
            told[name] = "spikes"
            continue
        error = float(np.abs(its["grad"] - gradient).max())
        if error > 1e-6:  # sinabs keeps its decays in single precision
            raise UserError(f"{name}: gradients differ by up to {error:.1e} from those of its model; it is not timed")
        told[name] = "spikes and gradients"
    return told


def timed(turns: Mapping[str, Callable[[], dict[str, Any]]], rounds: int) -> dict[str, list[float]]:
    """Seconds by name, one of each round; another name begins each round."""
    names, taken = list(turns), {name: [] for name in turns}
    for round_ in range(rounds):
        for k in range(len(names)):
            name = names[(round_ + k) % len(names)]
            taken[name].append(turns[name]()["seconds"])
    return taken


def ratio(taken: dict[str, list[float]], name: str, to: str) -> float:
    return statistics.median(a / b for a, b in zip(taken[name], taken[to], strict=True))


def layers(ask: Ask, threads: int, steps: Sequence[int], rounds: int) -> dict[str, Any]:
    """Ratios of time by rival and T; by T, seconds of ours and the share of the memory's bandwidth that they use."""
    found: dict[str, Any] = {
        "threads": threads,
        "times_ours": {name: {} for name in RIVALS},
        "share": {},
        "seconds": {},
    }
    for count in steps:
        shape = (count, BATCH, NEURONS)
        given = {"shape": shape, "threads": threads, "least": TURN}
        turns = {n: partial(ask, rival.environment, "seconds", name=n, **given) for n, rival in RIVALS.items()}
        taken = timed(turns, rounds)
        for name, rival in RIVALS.items():
            found["times_ours"][name][count] = ratio(taken, name, OURS[rival.surrogate])
        bandwidth = statistics.median(ask("", "triad", threads=threads)["bytes_per_second"] for _ in range(rounds))
        for surrogate, moved in BYTES.items():
            seconds = statistics.median(taken[OURS[surrogate]])
            found["share"].setdefault(OURS[surrogate], {})[count] = moved * math.prod(shape) / seconds / bandwidth
            found["seconds"].setdefault(OURS[surrogate], {})[count] = seconds
    return found


def nets(ask: Ask, threads: int, rounds: int) -> dict[str, float]:
    """Ratios of time of a training step, by network."""
    given = {"shape": PICTURES, "threads": threads, "least": TURN}
    turns = {
        name: partial(
            ask,
            RIVALS[neurons].environment if neurons in RIVALS else "",
            "net_seconds",
            name=neurons,
            channels_last=last,
            **given,
        )
        for name, (neurons, last) in NETS.items()
    }
    taken = timed(turns, rounds)
    return {name: ratio(taken, name, "ours") for name in NETS}


def peaks(steps: Sequence[int]) -> dict[str, dict[int, float]]:
    """Bytes an element that a pass takes at most, beside its input, by rival and T."""
    with processes() as ask:

        def bytes_of(name: str, count: int) -> float:
            shape = (count, BATCH, NEURONS)
            answer = ask(RIVALS[name].environment, "peak", name=name, shape=shape)
            return answer["bytes"] / (count * BATCH * NEURONS)

        return {name: {count: bytes_of(name, count) for count in steps} for name in RIVALS}


def layer_table(found: dict[str, Any], memory: dict[str, dict[int, float]], told: dict[str, str]) -> list[str]:
    steps = list(memory["ours"])
    head = [f"threads: {found['threads']}", *(f"T={t}" for t in steps), *(f"B/element T={t}" for t in steps)]
    rows = [[*head, "surrogate", "agrees in"]]
    for name, rival in RIVALS.items():
        times = [f"{found['times_ours'][name][t]:.2f}" for t in steps]
        rows.append([name, *times, *(f"{memory[name][t]:.1f}" for t in steps), rival.surrogate, told[name]])
    rows += [
        [f"{name}, milliseconds", *(f"{1000 * by[t]:.2f}" for t in steps), *[""] * (len(steps) + 2)]
        for name, by in found["seconds"].items()
    ]
    rows += [
        [f"{name}, share of triad", *(f"{by[t]:.0%}" for t in steps), *[""] * (len(steps) + 2)]
        for name, by in found["share"].items()
    ]
    return aligned(rows)


def main(steps: list[int], threads: list[int], rounds: int, as_json: bool) -> None:
    with processes() as ask, tempfile.TemporaryDirectory() as folder:
        told, memory = agreement(ask, Path(folder)), peaks(steps)
        row: dict[str, Any] = {"shape": ["T", BATCH, NEURONS], "agrees_in": told, "bytes_per_element": memory}
        row["layers"] = []
        print(f"Forward and backward of [T, {BATCH}, {NEURONS}], time over that of ours with the same surrogate:")
        for count in threads:
            row["layers"].append(layers(ask, count, steps, rounds))
            print("", *layer_table(row["layers"][-1], memory, told), sep="\n", flush=True)
        print("\nA training step of two convolutions, norms and layers of neurons, time over ours:")
        row["nets"] = [{"threads": count, "times_ours": nets(ask, count, rounds)} for count in threads]
        cells = [[name, *(f"{net['times_ours'][name]:.2f}" for net in row["nets"])] for name in NETS]
        heads = [f"pictures {list(PICTURES)}", *(f"threads: {count}" for count in threads)]
        print(*aligned([heads, *cells]), sep="\n")
    if as_json:
        print(json.dumps(row))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 8, 32])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true", dest="as_json")
    try:
        main(**vars(parser.parse_args()))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
