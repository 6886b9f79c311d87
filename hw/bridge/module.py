"""`SpikeBridge`: a simulator or chip where the model expects its spiking stack."""

from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from hw.bridge.transport import transport_of
from hw.errors import UserError
from hw.simulate.base import Backend, Result


@dataclass(frozen=True, kw_only=True)
class Pending:
    """Spikes on their way through the chip; `result` waits for them."""

    future: "Future[Result]"
    like: Tensor

    def result(self) -> Tensor:
        """s_out [T, B, *out] on the device and in the dtype of s_in."""
        return to_device(self.future.result().output, self.like)


class SpikeBridge(nn.Module):
    """s_in [T, B, *in] -> s_out [T, B, *out], both in {0, 1}; device and dtype stay.

    `begin` does not wait: while the chip runs batch k, torch computes batch k + 1. The spikes leave torch, so no
    gradient flows: the output never requires one, whatever the input does. To train, use the float or the quantized
    stack, or `quantize.loop.ChipInTheLoop`.
    """

    def __init__(self, backend: Backend) -> None:
        super().__init__()
        self.transport = transport_of(backend)

    @torch.no_grad()
    def begin(self, s_in: Tensor) -> Pending:
        if bool(((s_in != 0) & (s_in != 1)).any()):
            raise UserError("bridge: input holds values other than 0 and 1; encode it as spikes first")
        return Pending(future=self.transport.submit(to_host(s_in.to(torch.uint8)).numpy()), like=s_in)

    @torch.no_grad()
    def forward(self, s_in: Tensor) -> Tensor:
        return self.begin(s_in).result()


def to_host(x: Tensor) -> Tensor:
    """A copy on the CPU. From CUDA it goes to pinned memory on a stream of its own, so that it waits for `x` alone and
    not for what was queued behind it."""
    if x.device.type != "cuda":
        return x.cpu()
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    stream = torch.cuda.Stream(x.device)
    stream.wait_stream(torch.cuda.current_stream(x.device))
    with torch.cuda.stream(stream):
        host.copy_(x, non_blocking=True)
    x.record_stream(stream)
    stream.synchronize()
    return host


def to_device(spikes: np.ndarray, like: Tensor) -> Tensor:
    """uint8 spikes as a tensor where `like` is and as it is."""
    x = torch.from_numpy(spikes)
    if like.device.type == "cuda":
        x = x.pin_memory()
    return x.to(like.device, non_blocking=True).to(like.dtype)
