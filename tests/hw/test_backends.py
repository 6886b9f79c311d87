"""Every simulator against the reference: spikes, u and v of every layer, whole samples and streams in pieces."""

import math
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hw import BackendError, Dense, Flatten, Recurrent, SpikingProgram, UserError
from hw.bench import dense_program
from hw.simulate import Result, open_backend
from tests.hw.strategies import cases

SIMULATORS = ("events", "batched")
FAST = (*SIMULATORS, "auto")


def assert_same(found, truth) -> None:
    np.testing.assert_array_equal(found.output, truth.output)
    for what in ("layers", "u", "v", "state"):
        assert getattr(found, what).keys() == getattr(truth, what).keys()
    for name in truth.layers:
        for what in ("layers", "u", "v"):
            a, b = getattr(found, what)[name], getattr(truth, what)[name]
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b, err_msg=f"{what} of {name}")
    for name, state in truth.state.items():
        for field in state._fields:
            np.testing.assert_array_equal(
                getattr(found.state[name], field), getattr(state, field), err_msg=f"{field} of {name}"
            )


def simulators_equal_reference(case, cut) -> None:
    """At once, and in two pieces with the state between."""
    program, spikes = case
    reference = open_backend("reference", program)
    truth = reference.run(spikes, layers=True, states=True)
    whole = reference.run(spikes, layers=True, states=True, state={})
    assert_same(reference.run(spikes, layers=True, states=True), truth)
    np.testing.assert_array_equal(whole.output, truth.output)
    for name in SIMULATORS:
        backend = open_backend(name, program)
        assert_same(backend.run(spikes, layers=True, states=True), truth)
    for name in ("reference", *SIMULATORS):
        backend = open_backend(name, program)
        first = backend.run(spikes[:cut], layers=True, states=True, state={})
        if cut >= len(spikes):
            assert_same(first, whole)
            continue
        second = backend.run(spikes[cut:], layers=True, states=True, state=first.state)
        np.testing.assert_array_equal(np.concatenate([first.output, second.output]), whole.output)
        assert_same(second, reference.run(spikes[cut:], layers=True, states=True, state=first.state))
        for field in ("u", "v", "waiting", "last"):
            for layer in whole.state:
                a, b = getattr(second.state[layer], field), getattr(whole.state[layer], field)
                np.testing.assert_array_equal(a, b, err_msg=f"{name}: {field} of {layer}")


@pytest.mark.parametrize("shape", [(2, 3), (2, 1, 3, 2), (3, 2, 2)])
def test_inputs_of_any_rank_are_flattened_in_their_order(shape):
    rng = np.random.default_rng(0)
    fc = Dense(
        name="fc",
        weight_int=rng.integers(-99, 99, (4, math.prod(shape))),
        delay=rng.integers(0, 3, (4, math.prod(shape))),
        decay_u_int=1000,
        decay_v_int=500,
        v_th_mant=50,
    )
    program = SpikingProgram(input_shape=shape, steps=6, layers=(Flatten(name="flat"), fc))
    simulators_equal_reference((program, rng.integers(0, 2, (6, 3, *shape)).astype(np.uint8)), 2)


@settings(max_examples=200, deadline=None)
@given(cases(), st.integers(1, 9))
def test_simulators_give_the_same_spikes_u_and_v_at_once_and_in_pieces(case, cut):
    simulators_equal_reference(case, cut)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@settings(max_examples=1000, deadline=None)
@given(cases(), st.integers(1, 9))
def test_simulators_give_the_same_spikes_u_and_v_for_many_programs(case, cut):
    simulators_equal_reference(case, cut)


@pytest.mark.parametrize("name", ["reference", *FAST])
@pytest.mark.parametrize("sign", [1, -1])
def test_inputs_far_beyond_24_bits_end_in_the_same_32_bit_registers(name, sign):
    """decay 1 keeps the current, so that it grows past 2**31, where Lava's int32 wraps."""
    weight = sign * np.full((2, 4000), 255)
    layer = Dense(name="fc", weight_int=weight, weight_exp=3, decay_u_int=1, decay_v_int=1, v_th_mant=131071)
    program = SpikingProgram(input_shape=(4000,), steps=12, layers=(layer,))
    found = open_backend(name, program).run(np.ones((12, 1, 4000)), states=True)
    u, expected = 0, []
    for _ in range(12):
        kept = abs(u) * 4095 // 4096 * (1 if u > 0 else -1)
        u = (kept + (sign * 255 * 4000 * 8 << 6) + 2**31) % 2**32 - 2**31
        u += -(2**24) if u > 2**23 else 2**24 if u <= -(2**23) else 0
        expected.append(u)
    assert found.u["fc"][:, 0, 0].tolist() == expected
    assert max(map(abs, expected)) > 2**30


@pytest.mark.parametrize("name", ["reference", *FAST])
def test_a_recurrent_layer_hears_its_last_spikes_and_a_delay_holds_them_back(name):
    """Neuron 0 spikes on input; neuron 1 hears it one step later, or three with a delay of two in front."""
    for delay, expected in ((0, [[1, 0], [0, 1], [0, 0], [0, 0]]), (2, [[0, 0], [0, 0], [1, 0], [0, 1]])):
        layer = Recurrent(
            name="r",
            weight_int=np.array([[10], [0]]),
            weight_rec_int=np.array([[0, 0], [10, 0]]),
            decay_u_int=4096,
            decay_v_int=4096,
            v_th_mant=9,
            delay=delay,
        )
        program = SpikingProgram(input_shape=(1,), steps=4, layers=(layer,))
        spikes = np.array([1, 0, 0, 0]).reshape(4, 1, 1)
        assert open_backend(name, program).run(spikes).output[:, 0].tolist() == expected


def test_events_leave_torch_its_number_of_threads():
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            program = dense_program((6, 4), 3)
            open_backend("events", program).run(np.ones((3, 8, 6), np.uint8))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["reference", *FAST])
def test_a_state_of_another_batch_is_refused(name):
    layer = Dense(name="fc", weight_int=np.eye(3, dtype=int), decay_u_int=1, decay_v_int=1, v_th_mant=1)
    backend = open_backend(name, SpikingProgram(input_shape=(3,), steps=4, layers=(layer,)))
    state = backend.run(np.zeros((2, 5, 3)), state={}).state
    with pytest.raises(UserError, match=r"layer 'fc': the state's u has shape \(5, 3\), 2 streams need \(2, 3\)"):
        backend.run(np.zeros((2, 2, 3)), state=state)
    with pytest.raises(UserError, match=r"takes \(T, B, 3\)"):
        backend.run(np.zeros((0, 5, 3)), state=state)
    with pytest.raises(UserError, match=r"takes \(T=4, B, 3\)"):
        backend.run(np.zeros((2, 5, 3)))


@pytest.mark.parametrize("name", ["reference", *FAST])
def test_graded_spikes_outside_their_bits_are_refused(name):
    layer = Dense(name="fc", weight_int=np.eye(1, dtype=int), decay_u_int=1, decay_v_int=1, v_th_mant=1)
    backend = open_backend(name, SpikingProgram(input_shape=(1,), steps=1, layers=(layer,), input_bits=4))
    assert backend.run(np.full((1, 1, 1), -15), states=True).u["fc"].item() == -15 << 6
    for bad in (16, -16, 0.5):
        with pytest.raises(UserError, match=r"takes integers of 4 bits, \[-15, 15\]"):
            backend.run(np.full((1, 1, 1), bad))


def test_auto_goes_on_with_the_fastest_and_tries_again_for_other_work():
    layer = Dense(name="fc", weight_int=np.eye(3, dtype=int), decay_u_int=1, decay_v_int=1, v_th_mant=1)
    auto = open_backend("auto", SpikingProgram(input_shape=(3,), steps=4, layers=(layer,)))
    calls = []

    def slow(name, seconds):
        real = auto.candidates[name].run

        def run(spikes, **options):
            calls.append((name, spikes.shape[1]))
            time.sleep(seconds)
            return real(spikes, **options)

        auto.candidates[name].run = run

    slow("events", 0.05)
    slow("batched", 0.0)
    auto.run(np.ones((4, 5, 3)))
    assert calls == [("events", 1), ("events", 5), ("batched", 1), ("batched", 5)]
    auto.run(np.ones((4, 6, 3)))
    assert calls[4:] == [("batched", 6)]
    auto.run(np.ones((4, 40, 3)))
    assert len(calls) == 9
    auto.candidates["events"].run = lambda spikes, **_: Result(output=np.zeros((4, 5, 3), np.uint8))
    auto.chosen.clear()
    with pytest.raises(BackendError, match="spikes of events and batched differ"):
        auto.run(np.ones((4, 5, 3)))


def test_auto_compares_inner_layers_and_states_too():
    layers = [
        Dense(name=name, weight_int=np.eye(3, dtype=int), decay_u_int=1, decay_v_int=1, v_th_mant=1) for name in "ab"
    ]
    auto = open_backend("auto", SpikingProgram(input_shape=(3,), steps=4, layers=tuple(layers)))
    real = auto.candidates["batched"].run

    def other(spikes, **options):
        found = real(spikes, **options)
        return replace(found, v={name: v + (name == "a") for name, v in found.v.items()})

    auto.candidates["batched"].run = other
    auto.run(np.ones((4, 5, 3)))
    auto.chosen.clear()
    with pytest.raises(BackendError, match="spikes of events and batched differ"):
        auto.run(np.ones((4, 5, 3)), states=True)


def lava_equals_reference(case) -> None:
    program, spikes = case
    truth = open_backend("reference", program).run(spikes, layers=True, states=True)
    assert_same(open_backend("lava", program).run(spikes, layers=True, states=True), truth)


@settings(max_examples=8, deadline=None)
@given(cases(netx=True))
def test_lava_gives_the_same_spikes_u_and_v(case):
    lava_equals_reference(case)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@settings(max_examples=64, deadline=None)
@given(cases(netx=True))
def test_lava_gives_the_same_spikes_u_and_v_for_many_programs(case):
    lava_equals_reference(case)
