"""The fast one: event-driven, compiled by numba, samples spread over threads.

A spike costs a row of weights; a silent input costs a glance. Each sample runs through all steps of a layer before the
next layer begins, so that weights and states stay in the processor's cache. Sums are held in 32 bits, as in Lava's
models: spikes, u and v are the reference's, every one.

Inside, grids are channels last, so that the weights of one spike and the neurons that hear it lie side by side.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from math import gcd, prod
from threading import Lock

import numpy as np

from hw import loihi
from hw.program import Conv, Dense, Flatten, Recurrent, Shape, SpikingProgram
from hw.simulate.base import LayerState, Result, State, check_spikes, check_state, initial_state
from hw.simulate.kernels import WIDTH, run_conv, run_dense
from hw.validate import validate

_TURN = Lock()


def _last_to_first(x: np.ndarray, shape: Shape) -> np.ndarray:
    """[..., h * w * c] -> [..., c, h, w]; other shapes keep their order."""
    if len(shape) != 3:
        return x.reshape(*x.shape[:-1], *shape)
    channels, height, width = shape
    return np.ascontiguousarray(np.moveaxis(x.reshape(*x.shape[:-1], height, width, channels), -1, -3))


def _first_to_last(x: np.ndarray, shape: Shape) -> np.ndarray:
    """[..., c, h, w] -> [..., h * w * c]; other shapes keep their order."""
    if len(shape) != 3:
        return np.ascontiguousarray(x).reshape(*x.shape[: x.ndim - len(shape)], prod(shape))
    return np.ascontiguousarray(np.moveaxis(x, -3, -1)).reshape(*x.shape[:-3], prod(shape))


def _runs(outputs: int, order: list[int], inputs: int, stride: int, padding: int, dilation: int) -> np.ndarray:
    """Along one axis, which outputs an input meets under which taps: int32 [inputs, runs, (first output, first place in
    `order`, length)], length 0 behind the last. A run's outputs follow each other, and so do its taps in `order`."""
    table: list[list[list[int]]] = [[] for _ in range(inputs)]
    for x, runs in enumerate(table):
        for place, tap in enumerate(order):
            output, off = divmod(x + padding - tap * dilation, stride)
            if off or not 0 <= output < outputs:
                continue
            if runs and runs[-1][0] + runs[-1][2] == output:
                runs[-1][2] += 1
            else:
                runs.append([output, place, 1])
    filled = np.zeros((inputs, max(1, *map(len, table), 0), 3), np.int32)
    for runs, row in zip(table, filled, strict=True):
        row[: len(runs)] = np.array(runs).reshape(-1, 3)
    return filled


class _Compiled:
    """A layer's integers as the kernels want them."""

    def __init__(self, layer: Conv | Dense, grid: Shape, shape: Shape) -> None:
        """grid: the shape that the inputs have as (C, H, W) or (N,), even if the layer takes them flat."""
        self.layer, self.grid, self.shape = layer, grid, shape
        copies = -(-WIDTH // layer.channels)

        def channelwise(*values: np.ndarray, dtype: type) -> np.ndarray:
            rows = [np.tile(np.broadcast_to(value, (layer.channels,)), copies) for value in values]
            return np.ascontiguousarray(rows, dtype)

        keep_u, keep_v = (loihi.DECAY_UNITY - decay for decay in (layer.decay_u_int, layer.decay_v_int))
        self.decays = channelwise(keep_u / loihi.DECAY_UNITY, keep_v / loihi.DECAY_UNITY, dtype=np.float64)
        bias, threshold = layer.bias_mant << layer.bias_exp, layer.v_th_mant << loihi.STATE_SHIFT
        self.levels = channelwise(bias, threshold, dtype=np.int32)
        if isinstance(layer, Conv):
            self._compile_conv(layer)
        else:
            self._compile_dense(layer)

    def _compile_conv(self, layer: Conv) -> None:
        out, group_inputs, *kernel = layer.weight_int.shape
        group = out // layer.groups
        (sy, sx), (py, px), (dy, dx) = layer.stride, layer.padding, layer.dilation
        step = sx // gcd(sx, dx) if layer.groups == 1 else 1  # taps that far apart meet the same input
        order = sorted(range(kernel[1]), key=lambda tap: (tap % step, -tap if layer.groups == 1 else tap))
        weight = layer.weight_int[..., order].reshape(layer.groups, group, group_inputs, *kernel)
        rows = weight.transpose(0, 2, 3, 4, 1)  # [group, in / groups, kH, kW, out / groups]
        self.rows = np.ascontiguousarray(rows.reshape(-1, kernel[0], kernel[1] * group), np.int16)
        self.down = _runs(self.shape[1], list(range(kernel[0])), self.grid[1], sy, py, dy)
        self.across = _runs(self.shape[2], order, self.grid[2], sx, px, dx)
        self.size = (*self.shape[1:], out, group, group_inputs)

    def _compile_dense(self, layer: Dense) -> None:
        # channels last -> place in the flat input
        order = _first_to_last(np.arange(prod(self.grid)).reshape(self.grid), self.grid)
        weight, delay = layer.weight_int, np.broadcast_to(layer.delay, layer.weight_int.shape)
        self.delays = layer.delays
        tables = [np.where(delay == d, weight, 0).T[order] for d in self.delays]
        used = np.stack([table.any(1) for table in tables])
        self.row_of = np.where(used, np.cumsum(used).reshape(used.shape) - 1, -1).astype(np.int32)
        self.rows = np.ascontiguousarray(np.concatenate([t[u] for t, u in zip(tables, used, strict=True)]), np.int16)
        recurrent = layer.weight_rec_int.T if isinstance(layer, Recurrent) else np.zeros((0, layer.channels))
        self.recurrent = np.ascontiguousarray(recurrent, np.int16)

    def run(
        self, x: np.ndarray, state: LayerState | None, states: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, LayerState | None]:
        """x [B, T, in] -> s [B, T, out] uint8, u and v of the same shape or empty, and the state at the end, whose
        arrays are channels first. Without a state it starts from zero, and returns none."""
        samples, steps, layer = *x.shape[:2], self.layer
        size = prod(self.shape)
        s = np.empty((samples, steps, size), np.uint8)
        us, vs = np.empty((2, *(s.shape if states else (0, 0, 0))), np.int32)
        if state is None:
            u, v = np.zeros((2, samples, size), np.int32)
            last = np.zeros((samples, size), np.uint8)
        else:
            u, v, last = (
                _first_to_last(value, self.shape).reshape(samples, size).astype(dtype)
                for value, dtype in ((state.u, np.int32), (state.v, np.int32), (state.last, np.uint8))
            )
        if isinstance(layer, Conv):
            run_conv(
                x, self.grid[0], self.rows, self.down, self.across, self.size, layer.weight_exp, self.decays,
                self.levels, u, v, s, us, vs,
            )  # fmt: skip
            last = s[:, -1]
        else:
            if longest := self.delays[-1]:
                past = np.zeros((samples, longest, x.shape[2]), x.dtype)
                if state is not None:
                    waiting = state.waiting.swapaxes(0, 1).reshape(samples, longest, *self.grid)
                    past[:] = _first_to_last(waiting, self.grid)
                x = np.concatenate([past, x], axis=1)
            run_dense(
                x, self.rows, self.row_of, self.delays, self.recurrent, layer.weight_exp, self.decays, self.levels, u,
                v, last, s, us, vs,
            )  # fmt: skip
        if state is None:
            return s, us, vs, None
        waiting = state.waiting  # a convolution has no delays
        if isinstance(layer, Dense):
            tail = x[:, steps:]
            waiting = _last_to_first(tail, self.grid).reshape(tail.shape).swapaxes(0, 1)
        u, v, last = (_last_to_first(value, self.shape) for value in (u, v, last))
        return s, us, vs, LayerState(*(value.astype(np.int64) for value in (u, v, waiting, last)))


@contextmanager
def _threads() -> Iterator[None]:
    """numba's threads: one caller at a time, and torch keeps its own number, which numba's OpenMP layer overwrites."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else None
    with _TURN:
        yield
    if torch and torch.get_num_threads() != before:
        torch.set_num_threads(before)


class EventsBackend:
    """The kernels behind the interface that all backends share. The first run of a process compiles them, or loads them
    from numba's cache."""

    name = "events"

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
            before = state.get(name) or initial_state(compiled.layer, samples, shape) if state is not None else None
            with _threads():
                x, u, v, after[name] = compiled.run(x, before, states)
            if layers:
                kept[name] = outside(x, shape)
            if states:
                us[name], vs[name] = outside(u, shape).astype(np.int64), outside(v, shape).astype(np.int64)
        output = outside(x, self.layers[-1].shape).reshape(steps, samples, *self.program.output_shape)
        return Result(output=output, layers=kept, u=us, v=vs, state=after if state is not None else {})
