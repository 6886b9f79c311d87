"""The libraries that ours is timed against are the models that they are said to be, and what is not is not timed."""

import numpy as np
import pytest

from benchmarks import lif
from benchmarks.rivals import RIVALS
from hw.errors import UserError


@pytest.fixture
def ours_alone(monkeypatch):
    monkeypatch.setattr(lif, "RIVALS", {name: RIVALS[name] for name in ("ours", "ours, integers", "plain loop")})


@pytest.mark.slow
@pytest.mark.usefixtures("ours_alone")
def test_what_differs_is_not_timed_and_what_dies_is_told(tmp_path, monkeypatch):
    with lif.processes() as ask:
        assert set(lif.agreement(ask, tmp_path)) == {"ours", "ours, integers", "plain loop"}
        spikes, gradient = lif.truth("ours")
        assert 0.02 < spikes.mean() < 0.3
        for wrong, told in (
            ((spikes ^ (np.arange(spikes.size) == 5).reshape(spikes.shape), gradient), "ours: 1 of 16384 spikes"),
            ((spikes, gradient + 1e-3), "ours: gradients differ by up to 1.0e-03"),
        ):
            monkeypatch.setattr(lif, "truth", lambda name, wrong=wrong: wrong)
            with pytest.raises(UserError, match=told):
                lif.agreement(ask, tmp_path)
        with pytest.raises(UserError, match=r"ours, asked for seconds of .*, ended: KeyError: 'nobody'"):
            ask("", "seconds", name="nobody", shape=[2, 2, 2], threads=1, least=0)


def test_a_library_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setattr(lif, "ROOT", tmp_path)
    with (
        pytest.raises(UserError, match=r"\.peers/spikingjelly/bin/python is not there; `make bench` builds it"),
        lif.processes(),
    ):
        pass


@pytest.mark.slow
@pytest.mark.skipif(not (lif.ROOT / ".peers" / ".ready").exists(), reason="run `make .peers/.ready` first")
def test_all_libraries_are_the_models_that_they_are_said_to_be(tmp_path):
    with lif.processes() as ask:
        told = lif.agreement(ask, tmp_path)
    assert set(told) == set(RIVALS)
    assert {name for name, what in told.items() if what == "spikes"} == {
        "ours, integers",
        "slayer CUBA",  # its whole numbers are ours, its surrogate is not
        "snntorch Synaptic",
        "norse LIF",
    }
