"""The reference simulator against the recursion written again, one neuron and one Python integer at a time."""

from fractions import Fraction
from itertools import product
from math import trunc

import numpy as np
import pytest
from hypothesis import given, settings

from hw import Conv, Dense, Flatten, Recurrent, SpikingProgram, UserError
from hw.simulate import open_backend
from hw.validate import problems
from tests.hw.strategies import cases

LIMIT = 2**23


class Scalar:
    """One neuron of `hw.program`'s recursion. `wrapped` and `saturated` tell what it went through."""

    def __init__(self, decay_u: int, decay_v: int, threshold: int, bias: int) -> None:
        self.decay_u, self.decay_v, self.threshold, self.bias = decay_u, decay_v, threshold, bias
        self.u = self.v = 0
        self.wrapped = self.saturated = False

    def step(self, a: int) -> bool:
        u = trunc(Fraction(self.u * (4096 - self.decay_u), 4096)) + 64 * a
        if u > LIMIT:
            self.u, self.wrapped = u - 2 * LIMIT, True
        elif u <= -LIMIT:
            self.u, self.wrapped = u + 2 * LIMIT, True
        else:
            self.u = u
        v = trunc(Fraction(self.v * (4096 - self.decay_v), 4096)) + self.u + self.bias
        self.v = max(-(LIMIT - 1), min(LIMIT - 1, v))
        self.saturated |= self.v != v
        fired = self.v > 64 * self.threshold
        self.v = 0 if fired else self.v
        return fired


def scale(total: int, exponent: int) -> int:
    return total * 2**exponent if exponent >= 0 else total // 2**-exponent


def dense_input(layer: Dense, spikes: np.ndarray, t: int, i: int, heard: np.ndarray) -> int:
    """Summed input of neuron i at step t: spikes [T, in] of one sample, heard [out] its layer's of the step before."""
    delay = np.broadcast_to(layer.delay, layer.weight_int.shape)
    total = 0
    for d in set(delay[i].tolist()):
        inputs = [j for j in range(delay.shape[1]) if delay[i, j] == d and t >= d]
        total += scale(sum(int(layer.weight_int[i, j]) * int(spikes[t - d, j]) for j in inputs), layer.weight_exp)
    if isinstance(layer, Recurrent):
        total += scale(
            sum(int(w) * int(s) for w, s in zip(layer.weight_rec_int[i], heard, strict=True)), layer.weight_exp
        )
    return total


def conv_input(layer: Conv, s: np.ndarray, index: tuple[int, ...]) -> int:
    """Summed input of the neuron at `index`, from spikes s of one step and one sample."""
    w = layer.weight_int
    channel, y, x = index
    first = channel // (w.shape[0] // layer.groups) * w.shape[1]
    total = 0
    for c, i, j in product(*map(range, w.shape[1:])):
        row = y * layer.stride[0] + i * layer.dilation[0] - layer.padding[0]
        column = x * layer.stride[1] + j * layer.dilation[1] - layer.padding[1]
        if 0 <= row < s.shape[1] and 0 <= column < s.shape[2]:
            total += int(w[channel, c, i, j]) * int(s[first + c, row, column])
    return total


def scalar_layer(layer: Conv | Dense, spikes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[Scalar]]:
    """spikes [T, B, ...] -> s, u, v [T, B, ...] and the neurons."""
    shape = layer.output_shape(spikes.shape[2:])
    s, u, v = (np.zeros((*spikes.shape[:2], *shape), np.int64) for _ in range(3))
    neurons: dict[tuple[int, ...], Scalar] = {}
    for sample, channel, *place in np.ndindex(spikes.shape[1], *shape):
        decay_u, decay_v, threshold = (
            int(np.broadcast_to(value, layer.channels)[channel])
            for value in (layer.decay_u_int, layer.decay_v_int, layer.v_th_mant)
        )
        bias = int(layer.bias_mant[channel]) * 2**layer.bias_exp
        neurons[sample, channel, *place] = Scalar(decay_u, decay_v, threshold, bias)
    for t, ((sample, *index), neuron) in product(range(len(spikes)), neurons.items()):
        if isinstance(layer, Dense):
            heard = s[t - 1, sample] if t else np.zeros(shape, np.int64)
            a = dense_input(layer, spikes[:, sample], t, index[0], heard)
        else:
            a = conv_input(layer, spikes[t, sample], tuple(index))
        at = (t, sample, *index)
        s[at] = neuron.step(a)
        u[at], v[at] = neuron.u, neuron.v
    return s, u, v, list(neurons.values())


def assert_trace_is_scalar(program: SpikingProgram, spikes: np.ndarray) -> list[Scalar]:
    assert problems(program) == []
    seen, s = [], spikes
    found = open_backend("reference", program).run(spikes, layers=True, states=True)
    for layer in program.layers:
        if isinstance(layer, Flatten):
            s = s.reshape(*s.shape[:2], -1)
            continue
        *expected, neurons = scalar_layer(layer, s)
        for what, a, b in zip("suv", (found.layers, found.u, found.v), expected, strict=True):
            np.testing.assert_array_equal(a[layer.name], b, err_msg=f"{what} of {layer.name}")
        s, seen = expected[0], seen + neurons
    return seen


@settings(max_examples=200, deadline=None)
@given(cases())
def test_states_and_spikes_equal_the_scalar_recursion(case: tuple[SpikingProgram, np.ndarray]) -> None:
    assert_trace_is_scalar(*case)


@pytest.mark.parametrize("sign", [1, -1])
def test_current_wraps_and_voltage_saturates_as_in_the_scalar_recursion(sign: int) -> None:
    weight = sign * np.full((2, 400), 127)
    weight[1, 200:] = 0
    layer = Dense(name="fc", weight_int=weight, weight_exp=1, decay_u_int=1, decay_v_int=0, v_th_mant=131071)
    program = SpikingProgram(input_shape=(400,), steps=8, layers=(layer,))
    seen = assert_trace_is_scalar(program, np.ones((8, 1, 400), np.uint8))
    assert any(neuron.wrapped for neuron in seen)
    assert any(neuron.saturated for neuron in seen)


def test_current_wraps_beyond_the_limit_only_on_its_positive_side() -> None:
    """u > 2**23 wraps and u = 2**23 does not; u <= -2**23 does. 2**23 is 131072 << 6: 512 weights of 128, doubled."""
    for weight, expected in ((128, LIMIT), (-128, LIMIT)):
        layer = Dense(
            name="fc",
            weight_int=np.full((1, 512), weight),
            weight_exp=1,
            decay_u_int=1,
            decay_v_int=4096,
            v_th_mant=0,
        )
        program = SpikingProgram(input_shape=(512,), steps=1, layers=(layer,))
        assert open_backend("reference", program).run(np.ones((1, 1, 512)), states=True).u["fc"].item() == expected


def test_a_spike_needs_more_than_the_threshold() -> None:
    for threshold, spike in ((5, 1), (6, 0)):
        layer = Dense(name="fc", weight_int=np.array([[6]]), decay_u_int=4096, decay_v_int=4096, v_th_mant=threshold)
        program = SpikingProgram(input_shape=(1,), steps=1, layers=(layer,))
        assert open_backend("reference", program).run(np.ones((1, 1, 1), np.uint8)).output.item() == spike


def test_samples_of_a_batch_do_not_touch_each_other() -> None:
    rng = np.random.default_rng(3)
    layer = Dense(name="fc", weight_int=rng.integers(-100, 100, (5, 7)), decay_u_int=100, decay_v_int=100, v_th_mant=90)
    backend = open_backend("reference", SpikingProgram(input_shape=(7,), steps=6, layers=(layer,)))
    spikes = rng.integers(0, 2, (6, 4, 7), dtype=np.uint8)
    together = backend.run(spikes).output
    alone = np.concatenate([backend.run(spikes[:, i : i + 1]).output for i in range(4)], axis=1)
    assert together.any()
    np.testing.assert_array_equal(together, alone)


def test_an_empty_batch_gives_an_empty_result() -> None:
    layer = Dense(name="fc", weight_int=np.ones((3, 2), int), decay_u_int=1, decay_v_int=1, v_th_mant=1)
    backend = open_backend("reference", SpikingProgram(input_shape=(2,), steps=4, layers=(layer,)))
    assert backend.run(np.zeros((4, 0, 2), np.uint8)).output.shape == (4, 0, 3)


@pytest.mark.parametrize(
    ("spikes", "match"),
    [
        (np.zeros((3, 1, 2), np.uint8), r"shape \(3, 1, 2\), the program takes \(T=4, B, 2\)"),
        (np.zeros((4, 1, 3), np.uint8), r"the program takes \(T=4, B, 2\)"),
        (np.full((4, 1, 2), 2, np.uint8), "other than 0 and 1"),
        (np.full((4, 1, 2), 0.5), "other than 0 and 1"),
        (np.full((4, 1, 2), -1), "other than 0 and 1"),
        (np.full((4, 1, 2), 257), "other than 0 and 1"),
    ],
)
def test_input_that_is_not_spikes_of_the_right_shape_is_refused(spikes: np.ndarray, match: str) -> None:
    layer = Dense(name="fc", weight_int=np.ones((3, 2), int), decay_u_int=1, decay_v_int=1, v_th_mant=1)
    with pytest.raises(UserError, match=match):
        open_backend("reference", SpikingProgram(input_shape=(2,), steps=4, layers=(layer,))).run(spikes)


def test_an_unknown_backend_is_refused_with_the_known_ones() -> None:
    layer = Dense(name="fc", weight_int=np.ones((3, 2), int), decay_u_int=1, decay_v_int=1, v_th_mant=1)
    with pytest.raises(UserError, match="'loihi9' is not known; choose one of auto, reference"):
        open_backend("loihi9", SpikingProgram(input_shape=(2,), steps=4, layers=(layer,)))


def test_values_that_are_no_spikes_are_refused_and_nan_is_one_of_them():
    backend = open_backend(
        "reference",
        SpikingProgram(
            input_shape=(2,),
            steps=1,
            layers=(
                Dense(
                    name="d",
                    weight_int=np.array([[1, -1]]),
                    decay_u_int=np.array(1),
                    decay_v_int=np.array(1),
                    v_th_mant=np.array(1),
                ),
            ),
        ),
    )
    for value in (np.nan, 0.5, -1.0, 2.0, 256.0):
        with pytest.raises(UserError, match="other than 0 and 1"):
            backend.run(np.array([[[0.0, value]]]))
