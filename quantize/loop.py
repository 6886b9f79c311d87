"""Chip in the loop: the forward pass is the chip's, the backward pass the surrogate's (Cramer et al. 2022, "Surrogate
gradients for analog neuromorphic computing")."""

from pathlib import Path

import torch
from torch import Tensor

from hw.bridge.module import to_device, to_host
from hw.simulate import check_backend, open_backend
from quantize.lower import lower
from quantize.qat import QuantizedLayer, QuantizedStack


class ChipInTheLoop:
    """Runs a quantized stack on a backend, a flawed chip for instance, so that the stack can be trained for it.

    Each layer gets the spikes that the chip's layer before it gave, computes its own states and surrogate from them,
    and hands on the chip's spikes in place of its own:

        s = s_chip        ds/dx = ds_layer/dx at the layer's states

    The stack's weights are written to the chip before each pass, so that a step's gradient is of the weights it ran.
    """

    def __init__(self, backend: str, keys: Path | None = None) -> None:
        """keys: the client's folder of keys, for workers on other hosts."""
        self.backend, self.keys = check_backend(backend), keys

    def __call__(self, stack: QuantizedStack, s: Tensor) -> Tensor:
        chip = open_backend(self.backend, lower(stack), self.keys)
        spikes = to_host(s.detach().to(torch.uint8)).numpy()
        try:
            found = chip.run(spikes, layers=True).layers
        finally:
            if close := getattr(chip, "close", None):  # of remote workers
                close()
        for name, layer in stack.layers.named_children():
            own = layer(s)
            s = own + (to_device(found[name], own) - own).detach() if isinstance(layer, QuantizedLayer) else own
        return s
