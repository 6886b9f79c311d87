"""Lava as it was released, on Python 3.10 with the packages it pins, behind a worker: its spikes, u and v are ours."""

import subprocess
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from hw.bridge.remote import RemoteBackend
from hw.simulate import open_backend
from hw.simulate.files import simulate_file
from tests.hw.peers import ROOT, Process, worker
from tests.hw.strategies import cases
from tests.hw.test_backends import assert_same
from tests.hw.test_slayer import folder  # noqa: F401  (a fixture)

PYTHON = ROOT / ".stock-lava" / "bin" / "python"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not PYTHON.exists(), reason="run `make .stock-lava/.ready` first"),
]


@pytest.fixture(scope="module")
def stock() -> Iterator[Process]:
    options = ("--backend", "lava:stock=1")
    with worker("tcp://127.0.0.1:*", *options, start=(str(PYTHON), "-m", "hw.bridge.worker")) as process:
        yield process


def test_its_packages_are_those_that_lava_pins():
    code = "from importlib.metadata import version as v; print(v('numpy').split('.')[0], v('torch').rpartition('.')[0])"
    assert subprocess.check_output([str(PYTHON), "-c", code], text=True).split() == ["1", "2.3"]


@settings(max_examples=16, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cases(netx=True))
def test_random_programs(stock, case):
    program, spikes = case
    truth = open_backend("reference", program).run(spikes, layers=True, states=True)
    with RemoteBackend(program, [stock.address]) as remote:
        assert_same(remote.run(spikes, layers=True, states=True), truth)


@pytest.mark.parametrize("name", ["dense", "conv", "image"])
def test_networks_from_slayer(stock, folder, name):  # noqa: F811
    out = folder / f"{name}.stock.npy"
    simulate_file(folder / f"{name}.net", folder / f"{name}.in.npy", out, backend=stock.address, layers=False)
    np.testing.assert_array_equal(np.load(out), np.load(folder / f"{name}.out.npy"))
