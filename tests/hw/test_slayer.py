"""Networks that lava-dl's own slayer trained and exported: our simulators give slayer's spikes, and Lava's."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hw import Input
from hw.lava.compat import environment
from hw.netx_reader import read_net
from hw.simulate import open_backend
from hw.simulate.files import simulate_file


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("slayer")
    command = [sys.executable, "-W", "ignore", "-m", "tests.hw.slayer_networks", str(folder)]
    root = Path(__file__).parents[2]
    subprocess.run(command, check=True, cwd=root, env=environment())
    return folder


@pytest.mark.parametrize("name", ["dense", "conv", "image"])
def test_a_network_from_slayer_gives_slayers_spikes(folder, name):
    expected = np.load(folder / f"{name}.out.npy")
    assert 0.02 < expected.mean() < 0.9
    for backend in ("reference", "events", "batched", "lava"):
        out = folder / f"{name}.{backend}.npy"
        simulate_file(folder / f"{name}.net", folder / f"{name}.in.npy", out, backend=backend, layers=False)
        np.testing.assert_array_equal(np.load(out), expected, err_msg=backend)


def test_the_networks_have_what_they_are_to_show(folder):
    image = read_net(folder / "image.net", steps=1).layers[0]
    assert isinstance(image, Input)
    assert image.image_weight > 0
    assert image.image_bias != 0
    dense = read_net(folder / "dense.net", steps=1)
    conv = read_net(folder / "conv.net", steps=1, input_shape=(2, 8, 10))
    assert dense.synaptic[0].delay.max() > 2
    assert dense.synaptic[1].bias_mant.any()
    assert conv.synaptic[0].bias_mant.any()
    assert conv.synaptic[1].groups == 2
    assert open_backend("reference", conv).run(np.ones((1, 1, 2, 8, 10))).output.shape == (1, 1, 5)
