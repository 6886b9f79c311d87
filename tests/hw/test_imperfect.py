"""A chip with flaws: perfect without them, the same flaws for the same seed, and each flaw does what it says."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from hw import Conv, Dense, Flatten, Recurrent, SpikingProgram, UserError
from hw.simulate import open_backend
from hw.simulate.imperfect import ImperfectBackend
from tests.hw.strategies import cases
from tests.hw.test_backends import assert_same

NONE = "imperfect:dead=0,stuck=0,spread=0"


@settings(max_examples=60, deadline=None)
@given(cases())
def test_a_chip_without_flaws_is_the_reference(case):
    program, spikes = case
    truth = open_backend("reference", program).run(spikes, layers=True, states=True)
    assert_same(open_backend(NONE, program).run(spikes, layers=True, states=True), truth)


def network() -> SpikingProgram:
    rng = np.random.default_rng(0)
    neuron = {"decay_u_int": 1000, "decay_v_int": 200, "v_th_mant": 120}
    conv = Conv(name="conv", weight_int=rng.integers(-60, 60, (4, 2, 3, 3)), **neuron)
    heard, weight = rng.integers(-60, 60, (50, 50)), rng.integers(-60, 60, (50, 64))
    recurrent = Recurrent(name="rec", weight_int=weight, weight_rec_int=heard, **neuron)
    return SpikingProgram(input_shape=(2, 6, 6), steps=20, layers=(conv, Flatten(), recurrent))


SPIKES = np.random.default_rng(1).random((20, 8, 2, 6, 6)) < 0.4


def run(backend: str, program: SpikingProgram | None = None):
    return open_backend(backend, program or network()).run(SPIKES, layers=True)


def test_dead_neurons_never_spike_and_are_heard_by_nobody():
    truth = run(NONE).layers
    active = truth["conv"].any((0, 1))
    found = run("imperfect:dead=0.3,stuck=0,spread=0,seed=2").layers
    assert abs((~found["conv"].any((0, 1)))[active].mean() - 0.3) < 0.15
    assert not run("imperfect:dead=1,stuck=0,spread=0").output.any()
    # The recurrent layer of a chip whose dead neurons were cut out by hand.
    backend = open_backend("imperfect:dead=0.4,stuck=0,spread=0,seed=5", network())
    alive = backend.parts[1][1]
    assert 0 < alive.sum() < 50
    rec = network().layers[2]
    cut = replace(rec, weight_rec_int=np.where(alive, rec.weight_rec_int, 0))
    alone = SpikingProgram(input_shape=(64,), steps=20, layers=(cut,))
    result = backend.run(SPIKES, layers=True)
    expected = open_backend("reference", alone).run(result.layers["conv"].reshape(20, 8, 64)).output
    np.testing.assert_array_equal(result.output, expected * alive)


def test_dead_neurons_are_not_heard_through_stuck_weights():
    backend = open_backend("imperfect:dead=0.5,stuck=0.3,spread=0,seed=5", network())
    part, alive = backend.parts[1]
    weight = part.program.layers[0].weight_rec_int
    assert 0 < alive.sum() < alive.size
    assert not weight[:, ~alive].any()
    assert weight[:, alive].any()


def test_stuck_weights_hold_the_layers_extremes_wherever_the_seed_says():
    backend = open_backend("imperfect:dead=0,stuck=0.2,spread=0,seed=1", network())
    weight = network().layers[2].weight_int
    found = backend.parts[1][0].program.layers[0].weight_int
    changed = found != weight
    assert abs(changed.mean() - 0.2) < 0.03
    assert set(found[changed]) == {weight.min(), weight.max()}
    other = network()
    doubled = replace(other.layers[2], weight_int=-other.layers[2].weight_int)
    again = open_backend(
        "imperfect:dead=0,stuck=0.2,spread=0,seed=1", replace(other, layers=(*other.layers[:2], doubled))
    )
    moved = again.parts[1][0].program.layers[0].weight_int != doubled.weight_int
    assert (moved == changed).mean() > 0.99  # the same synapses of the same chip, whatever is written there


def test_thresholds_spread_as_asked():
    wide = Dense(name="d", weight_int=np.eye(4000, 1, dtype=int), decay_u_int=1, decay_v_int=1, v_th_mant=1000)
    backend = open_backend(
        "imperfect:dead=0,stuck=0,spread=0.1", SpikingProgram(input_shape=(1,), steps=1, layers=(wide,))
    )
    thresholds = backend.parts[0][0].program.layers[0].v_th_mant
    assert abs(thresholds.mean() - 1000) < 10
    assert abs(thresholds.std() - 100) < 5


def test_a_seed_is_a_copy_of_the_chip():
    one, again, other = (run(f"imperfect:seed={seed}").output for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("imperfect:dead=2", "dead is 2, a share is in 0..1"),
        ("imperfect:seed=-1", "seed is -1"),
        ("imperfect:seed=0.5", "seed is 0.5"),
        ("imperfect:seed=inf", "has no seed=inf, it takes dead=NUMBER, stuck=NUMBER, spread=NUMBER, seed=NUMBER"),
        ("imperfect:dead=nan", "has no dead=nan"),
        ("imperfect:odd=1", "has no odd=1, it takes dead=NUMBER"),
        ("imperfect:dead=x", "could not convert"),
        ("events:dead=1", "has no dead=1, it takes no options"),
        ("batched:device=1", "has no device=1, it takes no options"),
        ("lava:deadline=3", "has no deadline=3, it takes stock=NUMBER"),
        ("lava:stock=nan", "has no stock=nan"),
        ("loihi2:stock=1", "has no stock=1, it takes no options"),
        ("odd:dead=1", "is not known; choose one of"),
    ],
)
def test_options_that_make_no_sense_are_refused(name, match):
    with pytest.raises(UserError, match=match):
        open_backend(name, network())


def test_a_seed_is_a_whole_number_from_python_too():
    with pytest.raises(UserError, match="seed is inf, a whole number"):
        ImperfectBackend(network(), seed=float("inf"))


def test_streams_that_go_on_are_refused():
    with pytest.raises(UserError, match="whole samples only"):
        open_backend("imperfect", network()).run(SPIKES, state={})
