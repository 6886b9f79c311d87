"""From a float spiking network to integers: Brevitas quantizers, folding, PTQ, QAT whose forward pass is the chip's
recursion, lowering, verification.

    stack = quantize.ptq(network, spikes, "int4")       any torch module of synapses and CubaLIF neurons
    stack = quantize.qat(network, spikes, "int4")       the same, to be trained in its place
    program = quantize.lower(stack)                     integers
    quantize.verify(program, [spikes], stack=stack)     every runtime and file against the reference
"""

from torch import Tensor, nn

from quantize.importing import from_net, from_nir, from_program
from quantize.lower import lower
from quantize.ptq import calibrated
from quantize.qat import QuantizedStack
from quantize.trace import as_stack
from quantize.verify import RUNTIMES, verify

__all__ = [
    "RUNTIMES",
    "QuantizedStack",
    "as_stack",
    "from_net",
    "from_nir",
    "from_program",
    "lower",
    "ptq",
    "qat",
    "verify",
]


def ptq(network: nn.Module, spikes: Tensor, quantizer: str = "int8", method: str = "best") -> QuantizedStack:
    """`network` quantized after training, calibrated on input spikes [T, B, ...] (see `quantize.ptq`).

    quantizer: as in `quantize.quantizers.quantizers_of`. method: plain, best, or steps of `quantize.ptq` joined by +.
    `UserError` names the module that cannot be lowered, by its path, and what to do.
    """
    return calibrated(_stack(network, spikes), spikes, quantizer, method)


def qat(network: nn.Module, spikes: Tensor, quantizer: str = "int8", method: str = "plain") -> QuantizedStack:
    """What stands in for `network` while it is trained on: its forward pass is the chip's integers, its gradient the
    surrogate's. It starts as `ptq` leaves it; spikes [T, B, ...] give the shape and the calibration."""
    return ptq(network, spikes, quantizer, method).train()


def _stack(network: nn.Module, spikes: Tensor):
    return as_stack(network, tuple(spikes.shape[2:]), spikes.shape[0])
