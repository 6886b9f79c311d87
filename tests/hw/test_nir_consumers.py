"""The NIR file in other simulators, each in an environment of its own: which spikes they give, and why others.

They differ from the chip in one way, rounding: their states are floats, the chip's round toward zero. What each
computes is written down here, step by step, from the file alone: every one of its spikes must come out, and from the
chip's step every one of the reference's.
"""

import os
import subprocess
from collections.abc import Callable, Iterable
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple

import nir
import numpy as np
import pytest
import torch

from hw import Conv, Dense, Flatten, SpikingProgram
from hw.exchange.nir_file import DT, nir_graph
from hw.simulate import open_backend
from tests.hw.peers import ROOT

ENVIRONMENTS = ROOT / ".peers"
SCALE_EXP = -9
GRID = 2.0 ** (SCALE_EXP - 6)  # of the chip's states, in the file's units
SEEDS, SAMPLES, STEPS = 8, 16, 20

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not (ENVIRONMENTS / ".ready").exists(), reason="run `make .peers/.ready` first"),
]

Step = Callable[[nir.CubaLIF, np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, ...]]


def spikingjelly(node: nir.CubaLIF, x: np.ndarray, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, ...]:
    u = u * np.float32(1 - DT / node.tau_syn.astype(np.float64).flat[0]) + x
    v = v * np.float32(1 - DT / node.tau_mem.astype(np.float64).flat[0]) + u
    return v >= node.v_threshold, u, v


def snntorch(node: nir.CubaLIF, x: np.ndarray, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, ...]:
    u = (1 - DT / node.tau_syn).astype(np.float32) * u + x
    v = (1 - DT / node.tau_mem).astype(np.float32) * v + u
    return v > node.v_threshold, u, v


def norse(node: nir.CubaLIF, x: np.ndarray, u: np.ndarray, v: np.ndarray, dt: float = DT) -> tuple[np.ndarray, ...]:
    """The leak, which is the membrane's, pulls at the current too, and both start there (`START`)."""
    u = u + dt * (1 / node.tau_syn.astype(np.float32)) * (node.v_leak - u + node.w_in * x)
    v = v + dt * (1 / node.tau_mem.astype(np.float32)) * (node.r * u + node.v_leak - v)
    return v > node.v_threshold, u, v


def norse_default(node: nir.CubaLIF, x: np.ndarray, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, ...]:
    return norse(node, x, u, v, dt=1e-3)


def chip(node: nir.CubaLIF, x: np.ndarray, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, ...]:
    """One Euler step of dt of NIR's equations, where each state rounds toward zero as it decays."""
    kept_u, kept_v = (1 - np.rint(4096 * DT / tau.astype(np.float64)) / 4096 for tau in (node.tau_syn, node.tau_mem))
    bias = np.rint(node.v_leak / node.r.astype(np.float64) / GRID) * GRID
    u = np.trunc(u * kept_u / GRID) * GRID + x
    v = np.trunc(v * kept_v / GRID) * GRID + u + bias
    return v > node.v_threshold, u, v


RULES: dict[str, Step] = {
    "spikingjelly": spikingjelly,
    "snntorch": snntorch,
    "norse": norse,
    "norse-default": norse_default,
    "chip": chip,
}
START = {"norse": "v_leak", "norse-default": "v_leak"}


def emulate(graph: nir.NIRGraph, spikes: np.ndarray, name: str) -> dict[str, np.ndarray]:
    """The spikes [T, B, ...] of every layer of neurons, by the rule of that name."""
    states: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    heard: dict[str, list[np.ndarray]] = {}
    for s in spikes:
        for key, node in graph.nodes.items():  # in the order of the chain, as ours writes it
            if isinstance(node, nir.CubaLIF):
                x = s if name == "chip" else s.astype(np.float32)
                start = np.broadcast_to(getattr(node, START.get(name, "v_reset")), x.shape)
                s, u, v = RULES[name](node, x, *states.get(key, (start, start)))
                states[key] = u, np.where(s, v.dtype.type(0), v)
                heard.setdefault(key, []).append(s)
            else:
                s = synapses(node, s)
    return {key: np.stack(values) for key, values in heard.items()}


def synapses(node: nir.NIRNode, s: np.ndarray) -> np.ndarray:
    """Sums of weights are integers times a power of two, exact in any order."""
    if isinstance(node, nir.Linear):
        return s @ node.weight.T.astype(np.float64)
    if isinstance(node, nir.Conv2d):
        x, weight = torch.from_numpy(s.astype(np.float64)), torch.from_numpy(node.weight).double()
        return torch.nn.functional.conv2d(x, weight, None, tuple(node.stride), tuple(node.padding)).numpy()
    return s.reshape(len(s), -1) if isinstance(node, nir.Flatten) else s


class Case(NamedTuple):
    graph: nir.NIRGraph
    spikes: np.ndarray
    truth: dict[str, np.ndarray]


def cases(kind: str, bias: int = 0, halves: bool = False) -> list[Case]:
    """Random networks in which 5 to 40 % of the neurons fire, in every layer. bias: its largest mantissa.

    halves: decays of a half or one and seven steps, so few that no state ever rounds.
    """
    return list(islice((case for seed in count() if (case := case_of(kind, seed, bias, halves))), SEEDS))


def case_of(kind: str, seed: int, bias: int, halves: bool) -> Case | None:
    rng = np.random.default_rng(seed)

    def values(*shape: int) -> dict[str, object]:
        return {
            "weight_int": rng.integers(-128, 128, shape),
            "decay_u_int": rng.choice([2048, 4096]) if halves else rng.integers(400, 4097),
            "decay_v_int": rng.choice([2048, 4096]) if halves else rng.integers(100, 3000),
            "v_th_mant": rng.integers(100, 900),
            "bias_mant": rng.integers(-bias, bias + 1, shape[0]),
            "scale_exp": SCALE_EXP,
        }

    if kind == "dense":
        shape, layers = (64,), (Dense(name="fc1", **values(48, 64)), Dense(name="fc2", **values(32, 48)))
    else:
        conv = Conv(name="conv", stride=(2, 2), padding=(1, 1), **values(6, 2, 3, 3))
        shape, layers = (2, 8, 8), (conv, Flatten(), Dense(name="fc", **values(32, 96)))
    program = SpikingProgram(input_shape=shape, steps=7 if halves else STEPS, layers=layers)
    spikes = (rng.random((program.steps, SAMPLES, *shape)) < 0.3).astype(np.uint8)
    truth = open_backend("reference", program).run(spikes, layers=True).layers
    truth = {name: truth[name] for name in truth if name != "flatten"}
    if not all(0.05 <= values.mean() <= 0.4 for values in truth.values()):
        return None
    return Case(nir_graph(program), spikes, truth)


def start(consumer: str, folder: Path, given: Iterable[Case]) -> tuple[list[Path], subprocess.CompletedProcess[str]]:
    files = []
    for i, case in enumerate(given):
        files.append(folder / f"{i}.nir")
        nir.write(files[-1], case.graph)
        np.save(files[-1].with_suffix(".npy"), case.spikes)
    command = [ENVIRONMENTS / consumer.partition("-")[0] / "bin" / "python", ROOT / "tests/hw/nir_consumers.py"]
    done = subprocess.run(
        [*command, consumer, *files], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    return files, done


def heard(consumer: str, folder: Path, given: Iterable[Case]) -> list[dict[str, np.ndarray]]:
    files, done = start(consumer, folder, given)
    assert done.returncode == 0, done.stderr
    return [dict(np.load(file.with_suffix(f".{consumer}.npz"))) for file in files]


def assert_spikes(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def differing(found: list[dict[str, np.ndarray]], given: list[Case]) -> float:
    """The part of all spikes, hidden ones too, that are not the reference's."""
    pairs = [(f[name], case.truth[name]) for f, case in zip(found, given, strict=True) for name in f]
    return sum(int((a != b).sum()) for a, b in pairs) / sum(b.size for _, b in pairs)


SIMULATORS = pytest.mark.parametrize(
    ("consumer", "kind"),
    [("spikingjelly", "dense"), ("spikingjelly", "conv"), ("snntorch", "dense"), ("norse", "dense")],
)


@SIMULATORS
def test_every_spike_is_told_by_the_file_and_few_are_not_the_chips(consumer, kind, tmp_path):
    given = cases(kind)
    found = heard(consumer, tmp_path, given)
    for case, spikes in zip(given, found, strict=True):
        assert_spikes(emulate(case.graph, case.spikes, "chip"), case.truth)
        assert_spikes(spikes, emulate(case.graph, case.spikes, consumer))
    assert differing(found, given) < 5e-4


@SIMULATORS
def test_where_no_state_rounds_no_spike_differs(consumer, kind, tmp_path):
    given = cases(kind, halves=True)
    assert differing(heard(consumer, tmp_path, given), given) == 0


@pytest.mark.parametrize("consumer", ["snntorch", "norse"])
def test_convolutions_run_sample_by_sample_and_fail_with_a_batch(consumer, tmp_path):
    """Their Flatten takes the batch's axis for the first of the sample's."""
    given = cases("conv")[:2]
    _, done = start(consumer, tmp_path, given)
    assert "shapes cannot be multiplied" in done.stderr
    single = [case._replace(spikes=case.spikes[:, 0]) for case in given]
    for case, spikes in zip(given, heard(consumer, tmp_path, single), strict=True):
        expected = emulate(case.graph, case.spikes[:, :1], consumer)
        assert_spikes(spikes, {name: values[:, 0] for name, values in expected.items()})


def test_norse_takes_steps_of_a_millisecond_unless_told(tmp_path):
    given = cases("dense")
    found = heard("norse-default", tmp_path, given)
    for case, spikes in zip(given, found, strict=True):
        assert_spikes(spikes, emulate(case.graph, case.spikes, "norse-default"))
    assert differing(found, given) > 0.2


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_the_file_holds_the_biases(kind):
    for case in cases(kind, bias=20):
        assert_spikes(emulate(case.graph, case.spikes, "chip"), case.truth)


@pytest.mark.parametrize("consumer", ["spikingjelly", "snntorch"])
def test_biases_are_refused(consumer, tmp_path):
    _, done = start(consumer, tmp_path, cases("dense", bias=20)[:1])
    assert done.returncode != 0
    assert "v_leak" in done.stderr.splitlines()[-1]


def test_norse_puts_the_biases_into_the_current_too(tmp_path):
    given = cases("dense", bias=20)
    found = heard("norse", tmp_path, given)
    for case, spikes in zip(given, found, strict=True):
        assert_spikes(spikes, emulate(case.graph, case.spikes, "norse"))
    assert differing(found, given) > 0.02
