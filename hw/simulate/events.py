"""The fast one: event-driven, compiled by numba, samples spread over threads.

A spike costs a row of weights; a silent input costs a glance. Each sample runs through all steps of a layer before the
next layer begins, so that weights and states stay in the processor's cache. Sums are held in 32 bits, as in Lava's
models: spikes, u and v are the reference's, every one.

Inside, grids are channels last, so that the weights of one spike and the neurons that hear it lie side by side.
"""

from math import prod
from threading import Lock

import numba
import numpy as np

from hw import loihi
from hw.program import Conv, Dense, Flatten, Recurrent, Shape, SpikingProgram
from hw.simulate.base import LayerState, Result, State, check_spikes, check_state, initial_state
from hw.validate import validate

_LIMIT = loihi.STATE_LIMIT
_inline = numba.njit(inline="always")


@_inline
def _kept(x, keep):
    """trunc(x keep / 4096), toward zero: x int32, keep 0..4096. In two parts, so that 32 bits hold each product."""
    size = np.uint32(np.int32(-x)) if x < 0 else np.uint32(x)
    high = np.uint32(np.uint32(size >> np.uint32(12)) * keep)
    low = np.uint32(np.uint32(np.uint32(size & np.uint32(4095)) * keep) >> np.uint32(12))
    part = np.int32(np.uint32(high + low))
    return np.int32(-part) if x < 0 else part


@_inline
def _neurons(a, u, v, neurons, s):
    """One step of all neurons, in place: a, u, v, s [positions * channels]; neurons uint32/int32 [4, channels]."""
    channels = neurons.shape[1]
    for start in range(0, a.shape[0], channels):
        for k in range(channels):
            i = start + k
            ui = np.int32(_kept(u[i], np.uint32(neurons[0, k])) + np.int32(a[i] << 6))
            if ui > _LIMIT:
                ui = np.int32(ui - 2 * _LIMIT)
            elif ui <= -_LIMIT:
                ui = np.int32(ui + 2 * _LIMIT)
            vi = np.int32(_kept(v[i], np.uint32(neurons[1, k])) + ui + neurons[2, k])
            vi = np.int32(min(max(vi, 1 - _LIMIT), _LIMIT - 1))
            fired = vi > neurons[3, k]
            s[i] = fired
            u[i] = ui
            v[i] = np.int32(0) if fired else vi


@_inline
def _add(a, row, value):
    """a += value row, for all channels that one spike reaches."""
    if value == 1:
        for k in range(row.shape[0]):
            a[k] += row[k]
    else:
        for k in range(row.shape[0]):
            a[k] += np.int32(value * row[k])


@_inline
def _shift(a, exponent):
    if exponent > 0:
        for k in range(a.shape[0]):
            a[k] <<= exponent
    elif exponent < 0:
        for k in range(a.shape[0]):
            a[k] >>= -exponent


@_inline
def _move(part, a, exponent):
    """a += part << exponent; part = 0."""
    _shift(part, exponent)
    for k in range(a.shape[0]):
        a[k] += part[k]
        part[k] = 0


@numba.njit(cache=True, nogil=True, parallel=True)
def _run_dense(x, rows, row_of, delays, recurrent, exponent, neurons, u, v, last, s, us, vs):
    """x [B, longest delay + T, in] -> s [B, T, out]; u, v, last [B, out] are changed; us, vs as s, or empty.

    rows int16 [R, out]: row_of[k, j] is the row of input j's weights of delay delays[k], -1 where it has none.
    """
    samples, steps, out = s.shape
    longest = x.shape[1] - steps
    for b in numba.prange(samples):
        a, part = np.zeros(out, np.int32), np.zeros(out, np.int32)
        shifted = exponent != 0  # then each sum is shifted by itself before it counts
        for t in range(steps):
            a[:] = 0
            for d in range(delays.shape[0]):
                events = x[b, longest + t - delays[d]]
                for j in range(events.shape[0]):
                    if events[j] != 0 and row_of[d, j] >= 0:
                        _add(part if shifted else a, rows[row_of[d, j]], events[j])
                if shifted:
                    _move(part, a, exponent)
            for j in range(recurrent.shape[0]):
                if last[b, j]:
                    _add(part if shifted else a, recurrent[j], last[b, j])
            if shifted and recurrent.shape[0]:
                _move(part, a, exponent)
            _neurons(a, u[b], v[b], neurons, s[b, t])
            last[b] = s[b, t]
            if us.shape[0]:
                us[b, t] = u[b]
                vs[b, t] = v[b]


@numba.njit(cache=True, nogil=True, parallel=True)
def _run_conv(x, grid, rows, geometry, exponent, neurons, u, v, s, us, vs):
    """x [B, T, h * w * in] -> s [B, T, H * W * out]. grid: (h, w, in, H, W). geometry: (stride, padding, dilation),
    each (y, x). rows int16 [in, kH, kW, out / groups]: the weights of input channel c, whose group is
    c // (in / groups)."""
    samples, steps, size = s.shape
    height, width, inputs, out_height, out_width = grid
    (sy, sx), (py, px), (dy, dx) = geometry
    per_group = rows.shape[3]
    out = size // (out_height * out_width)
    group_inputs = inputs // (out // per_group)
    for b in numba.prange(samples):
        a = np.zeros(size, np.int32)
        for t in range(steps):
            a[:] = 0
            for place in range(height * width):
                for c in range(inputs):
                    value = x[b, t, place * inputs + c]
                    if value == 0:
                        continue
                    first = c // group_inputs * per_group
                    for i in range(rows.shape[1]):
                        top = place // width + py - i * dy
                        if top % sy != 0 or top < 0 or top // sy >= out_height:
                            continue
                        for j in range(rows.shape[2]):
                            left = place % width + px - j * dx
                            if left % sx != 0 or left < 0 or left // sx >= out_width:
                                continue
                            start = (top // sy * out_width + left // sx) * out + first
                            _add(a[start : start + per_group], rows[c, i, j], value)
            _shift(a, exponent)
            _neurons(a, u[b], v[b], neurons, s[b, t])
            if us.shape[0]:
                us[b, t] = u[b]
                vs[b, t] = v[b]


def _last_to_first(x: np.ndarray, shape: Shape) -> np.ndarray:
    """[..., h * w * c] -> [..., c, h, w]; a vector stays."""
    if len(shape) == 1:
        return x
    channels, height, width = shape
    return np.ascontiguousarray(np.moveaxis(x.reshape(*x.shape[:-1], height, width, channels), -1, -3))


def _first_to_last(x: np.ndarray, shape: Shape) -> np.ndarray:
    """[..., c, h, w] -> [..., h * w * c]; a vector stays."""
    if len(shape) == 1:
        return np.ascontiguousarray(x)
    return np.ascontiguousarray(np.moveaxis(x, -3, -1)).reshape(*x.shape[:-3], prod(shape))


class _Compiled:
    """A layer's integers as the kernels want them."""

    def __init__(self, layer: Conv | Dense, grid: Shape, shape: Shape) -> None:
        """grid: the shape that the inputs have as (C, H, W) or (N,), even if the layer takes them flat."""
        self.layer, self.grid, self.shape = layer, grid, shape
        full = (layer.channels,)
        self.neurons = np.stack(
            [
                np.broadcast_to(loihi.DECAY_UNITY - layer.decay_u_int, full),
                np.broadcast_to(loihi.DECAY_UNITY - layer.decay_v_int, full),
                layer.bias_mant << layer.bias_exp,
                np.broadcast_to(layer.v_th_mant << loihi.STATE_SHIFT, full),
            ]
        ).astype(np.int32)
        if isinstance(layer, Conv):
            groups = layer.weight_int.reshape(layer.groups, -1, *layer.weight_int.shape[1:])
            rows = groups.transpose(0, 2, 3, 4, 1)  # [group, in / groups, kH, kW, out / groups]
            self.rows = np.ascontiguousarray(rows.reshape(-1, *rows.shape[2:]), np.int16)
            return
        order = _first_to_last(np.arange(prod(grid)).reshape(grid), grid)  # channels last -> place in the flat input
        weight, delay = layer.weight_int, np.broadcast_to(layer.delay, layer.weight_int.shape)
        self.delays = layer.delays
        tables = [np.where(delay == d, weight, 0).T[order] for d in self.delays]
        used = np.stack([table.any(1) for table in tables])
        self.row_of = np.where(used, np.cumsum(used).reshape(used.shape) - 1, -1).astype(np.int32)
        self.rows = np.ascontiguousarray(np.concatenate([t[u] for t, u in zip(tables, used, strict=True)]), np.int16)
        recurrent = layer.weight_rec_int.T if isinstance(layer, Recurrent) else np.zeros((0, layer.channels))
        self.recurrent = np.ascontiguousarray(recurrent, np.int16)

    def run(
        self, x: np.ndarray, state: LayerState, states: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, LayerState]:
        """x [B, T, in] -> s [B, T, out] uint8, u and v of the same shape or empty, and the state at the end, whose
        arrays are channels first."""
        samples, steps = x.shape[:2]
        size = prod(self.shape)
        s = np.empty((samples, steps, size), np.uint8)
        us, vs = np.empty((2, *(s.shape if states else (0, 0, 0))), np.int32)
        u, v, last = (
            _first_to_last(value, self.shape).reshape(samples, size).astype(dtype)
            for value, dtype in ((state.u, np.int32), (state.v, np.int32), (state.last, np.uint8))
        )
        layer = self.layer
        if isinstance(layer, Conv):
            grid = (*self.grid[1:], self.grid[0], *self.shape[1:])
            geometry = (layer.stride, layer.padding, layer.dilation)
            _run_conv(x, grid, self.rows, geometry, layer.weight_exp, self.neurons, u, v, s, us, vs)
            if steps:
                last = s[:, -1]
            waiting = state.waiting
        else:
            past = _first_to_last(
                state.waiting.swapaxes(0, 1).reshape(samples, len(state.waiting), *self.grid), self.grid
            )
            x = np.concatenate([past.astype(x.dtype), x], axis=1)
            _run_dense(
                x, self.rows, self.row_of, self.delays, self.recurrent, layer.weight_exp, self.neurons, u, v, last,
                s, us, vs,
            )  # fmt: skip
            tail = x[:, steps:]
            waiting = _last_to_first(tail, self.grid).reshape(samples, *tail.shape[1:]).swapaxes(0, 1)
        u, v, last = (_last_to_first(value, self.shape) for value in (u, v, last))
        return s, us, vs, LayerState(*(value.astype(np.int64) for value in (u, v, waiting, last)))


class EventsBackend:
    """The kernels behind the interface that all backends share. The first run of a process compiles them, or loads them
    from numba's cache."""

    name = "events"
    _turn = Lock()  # numba's threads serve one caller at a time

    def __init__(self, program: SpikingProgram) -> None:
        self.program = validate(program)
        self.layers: list[_Compiled] = []
        grid = program.input_shape
        for layer in program.layers:
            if not isinstance(layer, Flatten):
                shape = program.shapes[layer.name]
                self.layers.append(_Compiled(layer, grid, shape))
                grid = shape

    def run(
        self, spikes: np.ndarray, *, layers: bool = False, states: bool = False, state: State | None = None
    ) -> Result:
        spikes = check_spikes(self.program, spikes, stream=state is not None)
        check_state(self.program, state or {}, spikes.shape[1])
        steps, samples = spikes.shape[:2]
        x = _first_to_last(spikes.swapaxes(0, 1), self.program.input_shape)
        kept, us, vs, after = {}, {}, {}, {}

        def outside(value: np.ndarray, shape: Shape) -> np.ndarray:
            return np.ascontiguousarray(_last_to_first(value, shape).swapaxes(0, 1))

        for compiled in self.layers:
            name, shape = compiled.layer.name, compiled.shape
            before = state[name] if state else initial_state(compiled.layer, samples, shape)
            with self._turn:
                x, u, v, after[name] = compiled.run(x, before, states)
            if layers:
                kept[name] = outside(x, shape)
            if states:
                us[name], vs[name] = outside(u, shape).astype(np.int64), outside(v, shape).astype(np.int64)
        output = outside(x, self.layers[-1].shape).reshape(steps, samples, *self.program.output_shape)
        return Result(output=output, layers=kept, u=us, v=vs, state=after if state is not None else {})
