"""`SpikeBridge`: a simulator or chip where the model expects its spiking stack."""

import torch
from torch import Tensor, nn

from hw.bridge.codec import pack, unpack
from hw.bridge.transport import InProcess, Transport
from hw.errors import UserError
from hw.simulate.base import Backend


class SpikeBridge(nn.Module):
    """s_in [T, B, *in] -> s_out [T, B, *out], both in {0, 1}; device and dtype stay.

    The spikes leave torch, so no gradient flows: the output never requires one, whatever the input does. To train,
    use the float or the quantized stack.
    """

    def __init__(self, backend: Backend) -> None:
        super().__init__()
        self.transport: Transport = InProcess(backend)

    @torch.no_grad()
    def forward(self, s_in: Tensor) -> Tensor:
        if bool(((s_in != 0) & (s_in != 1)).any()):
            raise UserError("bridge: input holds values other than 0 and 1; encode it as spikes first")
        s_out = unpack(self.transport.exchange(pack(s_in.to(torch.uint8).cpu().numpy())))
        return torch.from_numpy(s_out).to(device=s_in.device, dtype=s_in.dtype)
