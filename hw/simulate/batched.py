"""The simulator for large batches and for GPUs: `hw.program`'s recursion on torch tensors, all samples at once.

Sums of weights go through float64 and are rounded: below 2**53 every product and sum is exact, and even an algorithm
that is not (Winograd's convolution) errs by far less than a half, so that no kernel a device picks can change them.
States are int64.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hw import loihi
from hw.program import Conv, Dense, Flatten, Recurrent, SpikingProgram
from hw.simulate.base import LayerState, Result, State, check_spikes, check_state, initial_state
from hw.validate import validate


def _shift(a: Tensor, exponent: int) -> Tensor:
    return a << exponent if exponent >= 0 else a >> -exponent


def _held(x: Tensor) -> Tensor:
    """As a 32-bit register holds it, see `hw.simulate.reference`."""
    return x.to(torch.int32).to(torch.int64)


def _kept(x: Tensor, keep: Tensor) -> Tensor:
    """trunc(x keep / 4096), toward zero."""
    return x.sign() * (x.abs() * keep >> 12)


class _Layer:
    """A layer's integers on a device."""

    def __init__(self, layer: Conv | Dense, device: torch.device) -> None:
        self.layer = layer

        def tensor(value: np.ndarray, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.tensor(value, dtype=dtype, device=device)

        trailing = (1, 1) if isinstance(layer, Conv) else ()

        def channelwise(value: np.ndarray) -> Tensor:
            return tensor(np.broadcast_to(value, (layer.channels,))).reshape(-1, *trailing)

        self.keep_u = channelwise(loihi.DECAY_UNITY - layer.decay_u_int)
        self.keep_v = channelwise(loihi.DECAY_UNITY - layer.decay_v_int)
        self.bias = channelwise(layer.bias_mant << layer.bias_exp)
        self.threshold = channelwise(layer.v_th_mant << loihi.STATE_SHIFT)
        self.recurrent = tensor(layer.weight_rec_int, torch.float64) if isinstance(layer, Recurrent) else None
        if isinstance(layer, Conv):
            self.weights = [(0, tensor(layer.weight_int, torch.float64))]
        else:
            self.weights = [(int(d), tensor(layer.weight_of_delay(d), torch.float64)) for d in layer.delays]

    def drive(self, s: Tensor, steps: int) -> Tensor:
        """Input without recurrence, all steps at once: s [waiting + T, B, ...] -> a int64 [T, B, channels, ...]."""
        layer, total = self.layer, 0
        for delay, weight in self.weights:
            first = len(s) - steps - delay
            x = s[first : first + steps].flatten(0, 1).to(torch.float64)
            if isinstance(layer, Conv):
                a = F.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
            else:
                a = F.linear(x, weight)
            total = total + _shift(a.round().to(torch.int64), layer.weight_exp)
        assert isinstance(total, Tensor)
        return total.unflatten(0, (steps, -1))

    def neurons(self, a: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        limit = loihi.STATE_LIMIT
        u = _held(_kept(u, self.keep_u) + (a << loihi.STATE_SHIFT))
        u = torch.where(u > limit, u - 2 * limit, torch.where(u <= -limit, u + 2 * limit, u))
        v = _held(_kept(v, self.keep_v) + u + self.bias).clamp(1 - limit, limit - 1)
        s = v > self.threshold
        return s, u, v.masked_fill(s, 0)


class BatchedBackend:
    """Behind the interface that all backends share. device: by default CUDA if there is one."""

    name = "batched"

    def __init__(self, program: SpikingProgram, *, device: str | None = None) -> None:
        self.program = validate(program)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.layers = {layer.name: _Layer(layer, self.device) for layer in program.synaptic}

    @torch.no_grad()
    def run(
        self, spikes: np.ndarray, *, layers: bool = False, states: bool = False, state: State | None = None
    ) -> Result:
        spikes = check_spikes(self.program, spikes, stream=state is not None)
        check_state(self.program, state or {}, spikes.shape[1])
        s = torch.from_numpy(spikes).to(self.device)
        kept, us, vs, after = {}, {}, {}, {}

        def host(values: list[Tensor]) -> np.ndarray:
            return torch.stack(values).cpu().numpy()

        for layer in self.program.layers:
            if isinstance(layer, Flatten):
                s = s.flatten(2)
                continue
            name, on_device = layer.name, self.layers[layer.name]
            before = state[name] if state else initial_state(layer, s.shape[1], self.program.shapes[name])
            u, v, waiting, last = (torch.tensor(value, device=self.device) for value in before)
            steps = len(s)
            if len(waiting):
                s = torch.cat([waiting, s])
                waiting = s[steps:]
            drive = on_device.drive(s, steps)
            spikes_of, u_of, v_of = [], [], []
            for a in drive:
                if on_device.recurrent is not None:
                    heard = F.linear(last.to(torch.float64), on_device.recurrent)
                    a = a + _shift(heard.round().to(torch.int64), layer.weight_exp)
                last, u, v = on_device.neurons(a, u, v)
                spikes_of.append(last)
                if states:
                    u_of.append(u)
                    v_of.append(v)
            s = torch.stack(spikes_of).to(torch.uint8)
            if layers:
                kept[name] = s.cpu().numpy()
            if states:
                us[name], vs[name] = host(u_of), host(v_of)
            if state is not None:
                after[name] = LayerState(*(x.to(torch.int64).cpu().numpy() for x in (u, v, waiting, last)))
        return Result(output=s.cpu().numpy(), layers=kept, u=us, v=vs, state=after)
