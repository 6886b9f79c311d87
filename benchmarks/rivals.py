"""Layers of spiking neurons from six libraries, each imported by the one that makes its layer: all one model,

    u[t] = KEEP_U u[t-1] + x[t]    v[t] = KEEP_V v[t-1] + u[t]    s[t] = v[t] > 1    v[t] = 0 where s[t]

from states of zero; or u[t] = x[t], where a library has no current.
"""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

KEEP_U, KEEP_V = 0.5, 0.75
GRID = 2.0**-7
"""Inputs are odd multiples of it: integers and real numbers hold them alike, and no v is at v_th or where the rectangle
ends, which libraries count to either side."""

Layer = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Rival:
    """layer: makes what maps x to s, both in this library's own layout.    environment: the Python that has the
    library, "" for ours.    surrogate: what the backward pass takes, a name of `ashnets.surrogate`, "own" where the
    library has another.    axes: where this layout has T, B and N.    gain: what it wants x multiplied with.
    current: has it u?    reset_passes: gradients pass through its reset, which they do not in ours.    whole: its
    states are whole numbers, as the chip's."""

    layer: Callable[[], Layer]
    surrogate: str
    environment: str = ""
    axes: tuple[int, int, int] = (0, 1, 2)
    gain: float = 1.0
    current: bool = True
    reset_passes: bool = False
    whole: bool = False


def ours(surrogate: str, learned: bool = False) -> Layer:
    from ashnets.neurons import cuba_lif

    p = _ours_params(learned)
    return lambda x: cuba_lif(x, p, surrogate)


def our_loop(surrogate: str, learned: bool = False) -> Layer:
    from ashnets.neurons import cuba_lif_loop
    from ashnets.surrogate import SURROGATES

    p = _ours_params(learned)
    return lambda x: cuba_lif_loop(x, p, SURROGATES[surrogate])


def our_integers() -> Layer:
    from quantize.integer_lif import integer_cuba_lif

    p, scale = _ours_params(), torch.tensor(GRID)
    return lambda x: integer_cuba_lif(x / scale, scale, p, "rectangle")


def _ours_params(learned: bool = False) -> Any:
    from ashnets.neurons import LIFParams

    return LIFParams(*(torch.tensor(v, requires_grad=learned) for v in (1 - KEEP_U, 1 - KEEP_V, 1.0, 0.0)))


def spikingjelly(current: bool) -> nn.Module:
    from spikingjelly.activation_based import functional, neuron, surrogate

    slope = surrogate.Rect(alpha=1.0)
    if current:
        node = neuron.CUBALIFNode(KEEP_U, KEEP_V, v_threshold=1.0, v_reset=0.0, surrogate_function=slope)
        node.detach_reset = True
    else:
        tau = 1 / (1 - KEEP_V)
        node = neuron.LIFNode(tau, decay_input=False, surrogate_function=slope, detach_reset=True)
    node.register_forward_pre_hook(lambda module, _: functional.reset_net(module))
    functional.set_step_mode(node, "m")
    return node


def snntorch() -> Layer:
    from snntorch import Synaptic, surrogate

    node = Synaptic(KEEP_U, KEEP_V, spike_grad=surrogate.atan(alpha=2), reset_mechanism="zero", reset_delay=False)

    def run(x: Tensor) -> Tensor:
        u = v = torch.zeros_like(x[0])
        spikes = []
        for x_t in x:
            s, u, v = node(x_t, u, v)
            spikes.append(s)
        return torch.stack(spikes)

    return run


def norse() -> Layer:
    from norse.torch import LIF, LIFParameters

    dt = 0.001
    rates = {"tau_syn_inv": (1 - KEEP_U) / dt, "tau_mem_inv": (1 - KEEP_V) / dt}
    node = LIF(LIFParameters(**{k: torch.tensor(v) for k, v in rates.items()}, method="super", alpha=4.0), dt=dt)
    return lambda x: node(x)[0]


def sinabs() -> Layer:
    from sinabs.activation import MembraneReset, SingleSpike
    from sinabs.layers import LIF

    tau = {name: -1 / float(np.log(keep)) for name, keep in (("tau_syn", KEEP_U), ("tau_mem", KEEP_V))}

    def rectangle(v: Tensor, v_th: Tensor) -> Tensor:
        return ((v - v_th).abs() < 0.5).to(v.dtype)

    node = LIF(**tau, norm_input=False, spike_fn=SingleSpike, reset_fn=MembraneReset(), surrogate_grad_fn=rectangle)

    def run(x: Tensor) -> Tensor:
        node.reset_states()
        return node(x)

    return run


def slayer() -> Layer:
    return import_slayer().neuron.cuba.Neuron(1.0, 1 - KEEP_U, 1 - KEEP_V, scale=round(1 / GRID))


def import_slayer() -> Any:
    """lava-dl's slayer, which does not import as it was released; without its object detection, which wants OpenCV."""
    from hw.lava.compat import MENDS

    with ExitStack() as stack:
        for mend in MENDS:
            if mend.name in ("hashable-defaults", "start-method"):
                stack.enter_context(mend.around())
        sys.modules["lava.lib.dl.slayer.object_detection"] = ModuleType("object_detection")
        from lava.lib.dl import slayer
    return slayer


RIVALS = {
    "ours": Rival(layer=partial(ours, "rectangle"), surrogate="rectangle"),
    "ours, arctan": Rival(layer=partial(ours, "arctan"), surrogate="arctan"),
    "ours, fast sigmoid": Rival(layer=partial(ours, "fast_sigmoid"), surrogate="fast_sigmoid"),
    "ours, learned decays": Rival(layer=partial(ours, "arctan", True), surrogate="arctan"),
    "ours, integers": Rival(layer=our_integers, surrogate="rectangle", whole=True),
    "plain loop": Rival(layer=partial(our_loop, "rectangle"), surrogate="rectangle"),
    "plain loop, learned decays": Rival(layer=partial(our_loop, "arctan", True), surrogate="arctan"),
    "spikingjelly LIFNode": Rival(
        layer=partial(spikingjelly, False),
        environment="spikingjelly",
        surrogate="rectangle",
        current=False,
    ),
    "spikingjelly CUBALIFNode": Rival(
        layer=partial(spikingjelly, True), environment="spikingjelly", surrogate="rectangle"
    ),
    "snntorch Synaptic": Rival(layer=snntorch, environment="snntorch", surrogate="arctan", reset_passes=True),
    "norse LIF": Rival(
        layer=norse, environment="norse", surrogate="fast_sigmoid", gain=1 / (1 - KEEP_V), reset_passes=True
    ),
    "sinabs LIF": Rival(layer=sinabs, environment="sinabs", surrogate="rectangle", axes=(1, 0, 2), gain=1 / KEEP_U),
    "slayer CUBA": Rival(layer=slayer, surrogate="own", axes=(2, 0, 1), whole=True),
}


@cache
def layer_of(name: str, shape: tuple[int, ...]) -> Layer:
    """A layer for each shape: some keep the first that they saw."""
    return RIVALS[name].layer()


@cache
def data(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x, on the grid, and the gradient of s, in the layout of the rival; the same numbers for all."""
    rival, random = RIVALS[name], torch.Generator().manual_seed(0)
    x, g = (torch.randn(shape, generator=random, dtype=torch.float64) for _ in range(2))
    x = ((x / 4 / GRID).round() * 2 + 1) * GRID * rival.gain

    def laid(tensor: Tensor) -> Tensor:
        order = sorted(range(3), key=lambda axis: rival.axes[axis])
        return tensor.permute(order).to(dtype).contiguous()

    return laid(x).requires_grad_(), laid(g)
