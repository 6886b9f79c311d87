"""The reference simulator against the recursion written again, one neuron and one Python integer at a time."""

from fractions import Fraction
from itertools import pairwise, product
from math import trunc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw import Conv, Dense, Flatten, SpikingProgram, UserError
from hw.simulate import open_backend
from hw.simulate.reference import trace
from hw.validate import problems

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


def scalar_input(layer: Conv | Dense, s: np.ndarray, index: tuple[int, ...]) -> int:
    """Summed input of the neuron at `index`, from spikes s of one step and one sample."""
    w = layer.weight_int
    if isinstance(layer, Dense):
        return scale(sum(int(w[index[0], j]) * int(s[j]) for j in range(len(s))), layer.weight_exp)
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
    neurons = []
    for sample, index in product(range(spikes.shape[1]), np.ndindex(*shape)):
        channel = index[0]
        decay_u, decay_v, threshold = (
            int(np.broadcast_to(value, layer.channels)[channel])
            for value in (layer.decay_u_int, layer.decay_v_int, layer.v_th_mant)
        )
        neuron = Scalar(decay_u, decay_v, threshold, int(layer.bias_mant[channel]) * 2**layer.bias_exp)
        for t in range(len(spikes)):
            at = (t, sample, *index)
            s[at] = neuron.step(scalar_input(layer, spikes[t, sample], index))
            u[at], v[at] = neuron.u, neuron.v
        neurons.append(neuron)
    return s, u, v, neurons


def assert_trace_is_scalar(program: SpikingProgram, spikes: np.ndarray) -> list[Scalar]:
    assert problems(program) == []
    seen, s = [], spikes
    states = {name: (s, u, v) for name, s, u, v in trace(program, spikes)}
    for layer in program.layers:
        if isinstance(layer, Flatten):
            s = s.reshape(*s.shape[:2], -1)
            continue
        *expected, neurons = scalar_layer(layer, s)
        for what, a, b in zip("suv", states[layer.name], expected, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=f"{what} of {layer.name}")
        s, seen = expected[0], seen + neurons
    return seen


@st.composite
def neurons(draw: st.DrawFn, channels: int) -> dict[str, object]:
    def each(low: int, high: int) -> np.ndarray:
        values = st.integers(low, high)
        one = draw(st.booleans())
        return np.array(draw(values) if one else draw(st.lists(values, min_size=channels, max_size=channels)), np.int64)

    return {
        "decay_u_int": each(1, 4096),
        "decay_v_int": each(0, 4096),
        "v_th_mant": each(0, draw(st.sampled_from([3, 500, 131071]))),
        "bias_mant": np.broadcast_to(each(-4096, 4095), channels),
        "bias_exp": draw(st.integers(0, 7)),
    }


@st.composite
def weights(draw: st.DrawFn, shape: tuple[int, ...]) -> np.ndarray:
    low, high = draw(st.sampled_from([(-128, 127), (-3, 4), (0, 255), (-256, -1)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weight = rng.integers(low, high + 1, shape)
    weight.flat[0] = high or low  # never all zero
    return weight


@st.composite
def spikes_for(draw: st.DrawFn, steps: int, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rate = draw(st.sampled_from([0.0, 0.3, 0.9, 1.0]))
    return (rng.random((steps, draw(st.integers(1, 2)), *shape)) < rate).astype(np.uint8)


@st.composite
def dense_programs(draw: st.DrawFn) -> tuple[SpikingProgram, np.ndarray]:
    sizes = draw(st.lists(st.integers(1, 6), min_size=2, max_size=3))
    layers = tuple(
        Dense(
            name=f"fc{i}",
            weight_int=draw(weights((out, into))),
            weight_exp=draw(st.integers(-8, 7)),
            **draw(neurons(out)),
        )
        for i, (into, out) in enumerate(pairwise(sizes))
    )
    program = SpikingProgram(input_shape=(sizes[0],), steps=draw(st.integers(1, 12)), layers=layers)
    return program, draw(spikes_for(program.steps, program.input_shape))


@st.composite
def conv_programs(draw: st.DrawFn) -> tuple[SpikingProgram, np.ndarray]:
    def pair(low: int, high: int) -> tuple[int, int]:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    groups, into, out = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    kernel, dilation = pair(1, 3), pair(1, 2)
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    conv = Conv(
        name="conv",
        weight_int=draw(weights((out * groups, into, *kernel))),
        stride=pair(1, 3),
        padding=pair(0, 2),
        dilation=dilation,
        groups=groups,
        **draw(neurons(out * groups)),
    )
    grid = tuple(draw(st.integers(r, r + 2)) for r in reach)
    shape = (into * groups, *grid)
    flat = int(np.prod(conv.output_shape(shape)))
    dense = Dense(name="fc", weight_int=draw(weights((2, flat))), **draw(neurons(2)))
    program = SpikingProgram(input_shape=shape, steps=draw(st.integers(1, 4)), layers=(conv, Flatten(), dense))
    return program, draw(spikes_for(program.steps, shape))


@settings(max_examples=120, deadline=None)
@given(dense_programs())
def test_dense_states_and_spikes_equal_the_scalar_recursion(case: tuple[SpikingProgram, np.ndarray]) -> None:
    assert_trace_is_scalar(*case)


@settings(max_examples=80, deadline=None)
@given(conv_programs())
def test_conv_states_and_spikes_equal_the_scalar_recursion(case: tuple[SpikingProgram, np.ndarray]) -> None:
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
        (_, _, u, _) = next(trace(program, np.ones((1, 1, 512), np.uint8)))
        assert u.item() == expected


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
    with pytest.raises(UserError, match="'loihi9' is not known; choose one of reference"):
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
