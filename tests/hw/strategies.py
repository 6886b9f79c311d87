"""Random programs of every layer kind, with spikes for them. `netx=True`: what a .net file and Lava hold exactly."""

import numpy as np
from hypothesis import strategies as st

from hw.program import Conv, Dense, Flatten, Layer, Recurrent, SpikingProgram


@st.composite
def neurons(draw: st.DrawFn, channels: int, netx: bool) -> dict[str, object]:
    def each(low: int, high: int) -> np.ndarray:
        values = st.integers(low, high)
        one = netx or draw(st.booleans())
        return np.array(draw(values) if one else draw(st.lists(values, min_size=channels, max_size=channels)), np.int64)

    return {
        "decay_u_int": each(1, 4096),
        "decay_v_int": each(0, 4096),
        "v_th_mant": each(0, draw(st.sampled_from([3, 500, 131071]))),
        "bias_mant": np.broadcast_to(each(-4096, 4095), channels),
        "bias_exp": 6 if netx else draw(st.integers(0, 7)),
    }


@st.composite
def weights(draw: st.DrawFn, shape: tuple[int, ...], netx: bool) -> np.ndarray:
    low, high = draw(st.sampled_from([(-127, 127), (-3, 4), (0, 255), *(() if netx else [(-256, -1)])]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weight = rng.integers(low, high + 1, shape)
    weight.flat[0] = high or low  # never all zero
    return weight


@st.composite
def spikes_for(draw: st.DrawFn, program: SpikingProgram, samples: int = 2) -> np.ndarray:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (program.steps, draw(st.integers(1, samples)), *program.input_shape)
    spikes = rng.random(shape) < draw(st.sampled_from([0.0, 0.1, 0.3, 0.9, 1.0]))
    if not program.input_bits:
        return spikes.astype(np.uint8)
    limit = 1 << program.input_bits
    return spikes * rng.integers(1 - limit, limit, shape)


@st.composite
def dense_layers(draw: st.DrawFn, name: str, inputs: int, netx: bool) -> Dense:
    out = draw(st.integers(1, 6))
    values = draw(neurons(out, netx)) | {"name": name, "weight_exp": 0 if netx else draw(st.integers(-8, 7))}
    recurrent = draw(st.booleans())
    weight = draw(weights((out, inputs + out * recurrent), netx))
    if draw(st.booleans()) and not (netx and recurrent):
        shape = draw(st.sampled_from([(), (inputs,), (out, inputs)]))
        delays = st.integers(0, draw(st.sampled_from([1, 4, 62])))
        size = int(np.prod(shape))
        values["delay"] = np.reshape(draw(st.lists(delays, min_size=size, max_size=size)), shape)
    if recurrent:
        return Recurrent(**values, weight_int=weight[:, :inputs], weight_rec_int=weight[:, inputs:])
    return Dense(**values, weight_int=weight)


@st.composite
def conv_layers(draw: st.DrawFn, name: str, shape: tuple[int, ...], netx: bool) -> Conv:
    def pair(low: int, high: int) -> tuple[int, int]:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    groups = draw(st.sampled_from([g for g in (1, 2, 3) if shape[0] % g == 0]))
    out = draw(st.integers(1, 3)) * groups
    padding, dilation = pair(0, 2), pair(1, 2)
    kernel = tuple(
        draw(st.integers(1, max(k for k in (1, 2, 3) if d * (k - 1) + 1 <= size + 2 * p)))
        for size, p, d in zip(shape[1:], padding, dilation, strict=True)
    )
    return Conv(
        name=name,
        weight_int=draw(weights((out, shape[0] // groups, *kernel), netx)),
        stride=pair(1, 3),
        padding=padding,
        dilation=dilation,
        groups=groups,
        **draw(neurons(out, netx)),
    )


@st.composite
def programs(draw: st.DrawFn, netx: bool) -> SpikingProgram:
    layers: list[Layer] = []
    if draw(st.booleans()):
        input_shape = shape = (draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 5)))
        for i in range(draw(st.integers(1, 2))):
            layers.append(draw(conv_layers(f"conv{i}", shape, netx)))
            shape = layers[-1].output_shape(shape)
        if draw(st.booleans()):
            layers.append(Flatten())
            shape = (int(np.prod(shape)),)
    else:
        input_shape = shape = (draw(st.integers(1, 6)),)
    if len(shape) == 1:
        for i in range(draw(st.integers(1, 2))):
            layers.append(draw(dense_layers(f"fc{i}", shape[0], netx)))
            shape = (layers[-1].channels,)
    return SpikingProgram(
        input_shape=input_shape,
        steps=draw(st.integers(1, 10)),
        layers=tuple(layers),
        input_bits=draw(st.sampled_from([0, 0, 1, 4])),
    )


@st.composite
def cases(draw: st.DrawFn, netx: bool = False) -> tuple[SpikingProgram, np.ndarray]:
    program = draw(programs(netx))
    return program, draw(spikes_for(program, 3 if netx else 2))
