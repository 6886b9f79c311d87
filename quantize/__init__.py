"""From the float spiking stack to integers: Brevitas quantizers, folding, QAT whose forward pass is the chip's
recursion, lowering."""

from quantize.lower import lower
from quantize.qat import QuantizedStack

__all__ = ["QuantizedStack", "lower"]
