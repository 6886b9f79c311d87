"""Networks from elsewhere as a float `LayerStack`, to be quantized and trained on: NIR of any tool, `.net` of lava-dl.

One Euler step of dt of NIR's CubaLIF is `ashnets.neurons`' step with

    d_u = dt / tau_syn    d_v = dt / tau_mem    w = W d_u w_in d_v r    b = d_v v_leak    v_th = v_threshold

and LIF, which has no current, the same with d_u = 1 and w_in = 1.
"""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ashnets.neurons import CubaLIF
from ashnets.stack import LayerStack, SpikingLayer
from hw import loihi
from hw.errors import UserError
from hw.exchange.nir_file import DT
from hw.hdf5 import opened
from hw.netx_reader import read_net
from hw.program import Conv, Dense, Flatten, Input, Recurrent, SpikingProgram
from quantize.qat import refuse_not_finite
from quantize.trace import free_name


def from_net(path: Path, *, steps: int, input_shape: tuple[int, ...] | None = None) -> LayerStack:
    """The real-valued network behind a `.net` file of lava-dl. steps, input_shape: as in `hw.netx_reader.read_net`."""
    return from_program(read_net(path, steps=steps, input_shape=input_shape))


def from_program(program: SpikingProgram) -> LayerStack:
    """The real-valued network that a program rounds. Each layer is scaled by a power of two so that its threshold is
    near 1."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for layer in program.layers:
        if isinstance(layer, Flatten):
            layers[free_name(layer.name, layers)] = nn.Flatten(2)
            continue
        if isinstance(layer, (Input, Recurrent)) or (isinstance(layer, Dense) and layer.delay.any()):
            raise UserError(
                f"layer '{layer.name}': is {type(layer).__name__} or has delays, which runs and exports as a program "
                "but cannot be trained here; use the program as it is"
            )
        threshold = float(layer.v_th_mant.max())
        unit = 2.0 ** -np.ceil(np.log2(threshold)) if threshold else 1.0
        weight = np.ldexp(layer.weight_int.astype(np.float64), layer.weight_exp) * unit
        bias = np.ldexp(layer.bias_mant.astype(np.float64), layer.bias_exp - loihi.STATE_SHIFT) * unit
        decays = layer.decay_u_int / loihi.DECAY_UNITY, layer.decay_v_int / loihi.DECAY_UNITY
        geometry = {}
        if isinstance(layer, Conv):
            geometry = {key: getattr(layer, key) for key in ("stride", "padding", "dilation", "groups")}
        layers[free_name(layer.name, layers)] = _layer(
            layer.name, weight, *decays, layer.v_th_mant * unit, bias, geometry
        )
    return LayerStack(layers, program.input_shape, program.output_shape, program.steps)


def from_nir(path: Path, *, steps: int, dt: float | None = None) -> LayerStack:
    """The network in a NIR file: a chain of Linear, Conv2d, Affine and Flatten nodes and CubaLIF or LIF neurons.

    steps: T of a sample. dt: seconds of a step; by default what the file's metadata says, else 1e-4. `UserError` names
    the node that cannot be held, and why.
    """
    import nir

    with opened(path, "a NIR file"):
        try:
            graph = nir.read(path)
            return _from_graph(graph, steps, _step_of(graph) if dt is None else dt)
        except (AssertionError, AttributeError, IndexError) as error:  # of `nir`, for nodes that are none
            raise ValueError(str(error) or type(error).__name__) from error


def _step_of(graph: Any) -> float:
    found = graph.metadata.get("dt", DT)
    try:
        return float(found)
    except (ValueError, TypeError) as error:
        raise UserError(f"its metadata dt is {found!r}, not seconds of a step; pass dt") from error


def _from_graph(graph: Any, steps: int, dt: float) -> LayerStack:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    shape: tuple[int, ...] = ()
    synapse: Any = None
    for name, node in _chain(graph):
        kind = type(node).__name__
        if kind == "Input":
            shape = tuple(int(size) for size in node.input_type["input"])
        elif kind == "Flatten":
            layers[free_name(name, layers)], shape = nn.Flatten(2), (int(np.prod(shape)),)
        elif kind in ("Linear", "Affine", "Conv2d"):
            if synapse is not None:
                raise UserError(f"node '{name}': follows other synapses without neurons between; put neurons there")
            if np.any(getattr(node, "bias", 0)):
                raise UserError(f"node '{name}': has a bias, which the current's decay would filter; use v_leak for it")
            synapse = node
        elif kind in ("CubaLIF", "LIF"):
            if synapse is None:
                raise UserError(f"node '{name}': neurons without synapses; put a Linear or Conv2d node in front")
            layers[free_name(name, layers)] = _of_nodes(name, synapse, node, dt)
            shape, synapse = tuple(node.v_threshold.shape), None
        elif kind != "Output":
            raise UserError(f"node '{name}': is {kind}, which the chip does not hold; remove it or use CubaLIF")
    if synapse is not None or not any(isinstance(layer, SpikingLayer) for layer in layers.values()):
        raise UserError("the graph does not end with neurons; leave the readout outside of it")
    inputs = next(iter(graph.inputs.values())).input_type["input"]
    return LayerStack(layers, tuple(int(size) for size in inputs), shape, steps)


def _chain(graph: Any) -> list[tuple[str, Any]]:
    """The nodes in order; `UserError` where they branch or loop."""
    after: dict[str, str] = {}
    for source, target in graph.edges:
        if source in after or target in after.values():
            raise UserError(f"edge '{source}' -> '{target}': the graph branches or loops there; a program is a chain")
        after[source] = target
    starts = [name for name in graph.nodes if name not in after.values()]
    if len(starts) != 1 or len(after) != len(graph.nodes) - 1:
        raise UserError(f"{len(starts)} of {len(graph.nodes)} nodes have none before them; a program is one chain")
    order = starts
    while order[-1] in after:
        order.append(after[order[-1]])
    return [(name, graph.nodes[name]) for name in order]


def _of_nodes(name: str, synapse: Any, neuron: Any, dt: float) -> SpikingLayer:
    def channelwise(key: str) -> np.ndarray:
        value = np.asarray(getattr(neuron, key), np.float64)
        if not np.isfinite(value).all():
            odd = value[~np.isfinite(value)][0]
            raise UserError(f"node '{name}': {key} holds {odd}, not finite values; train or export it anew")
        each = value.reshape(value.shape[0], -1)
        if np.any(each != each[:, :1]):
            raise UserError(f"node '{name}': {key} differs inside a channel, a program holds one per channel; share it")
        return each[:, 0]

    if np.any(getattr(neuron, "v_reset", 0)):
        raise UserError(f"node '{name}': v_reset is not 0, where the chip resets to; shift the potentials")
    cuba = type(neuron).__name__ == "CubaLIF"
    decay_v = dt / channelwise("tau_mem" if cuba else "tau")
    decay_u = dt / channelwise("tau_syn") if cuba else np.ones_like(decay_v)
    for key, decay in (("tau_syn", decay_u), ("tau_mem", decay_v)):
        if not np.all((decay > 0) & (decay <= 1 + 1e-6)):
            raise UserError(
                f"node '{name}': dt / {key} is {decay.max():g}, a decay lies in (0, 1]; pass the dt that the network "
                f"was made for (now {dt:g} s)"
            )
    factor = decay_v * channelwise("r") * (decay_u * channelwise("w_in") if cuba else 1)
    weight = np.asarray(synapse.weight, np.float64)
    weight = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    geometry: dict[str, Any] = {}
    if weight.ndim == 4:
        keys = ("stride", "padding", "dilation")
        if isinstance(synapse.padding, str):
            raise UserError(f"node '{name}': its synapses pad {synapse.padding!r}; give the padding in numbers")
        geometry = {key: tuple(int(n) for n in np.broadcast_to(getattr(synapse, key), 2)) for key in keys}
        geometry["groups"] = int(synapse.groups)
    bias = decay_v * channelwise("v_leak")
    return _layer(name, weight, decay_u, decay_v, channelwise("v_threshold"), bias, geometry)


def _layer(
    name: str,
    weight: np.ndarray,
    decay_u: np.ndarray,
    decay_v: np.ndarray,
    v_th: np.ndarray,
    bias: np.ndarray,
    geometry: dict[str, Any],
) -> SpikingLayer:
    """A layer of these real values, each [] or [channels]. Thresholds that differ by channel become 1, and the weights
    and bias of each channel are divided by its own, which changes no spike."""
    channels = weight.shape[0]
    if v_th.ndim and np.all(v_th == v_th[0]):
        v_th = v_th[0]
    if np.any(v_th < 0):
        raise UserError(f"layer '{name}': its threshold is {v_th.min():g}, the chip holds none below 0; raise it")
    if np.ndim(v_th):
        if not np.all(v_th > 0):
            raise UserError(
                f"layer '{name}': thresholds differ by channel and reach {v_th.min():g}; they must be above 0"
            )
        weight, bias, v_th = weight / v_th.reshape(-1, *[1] * (weight.ndim - 1)), bias / v_th, np.ones(())
    decays = np.stack([np.broadcast_to(decay, (channels,)) for decay in (decay_u, decay_v)])
    shared = bool(np.all(decays == decays[:, :1]))
    neuron = CubaLIF(channels, v_th=float(v_th), per_channel=not shared)
    if weight.ndim == 4:
        kernel = (weight.shape[2], weight.shape[3])
        inputs = weight.shape[1] * geometry["groups"]
        synapse: nn.Conv2d | nn.Linear = nn.Conv2d(inputs, channels, kernel, bias=False, **geometry)
    else:
        synapse = nn.Linear(weight.shape[1], channels, bias=False)
    with torch.no_grad():
        synapse.weight.copy_(torch.from_numpy(weight))
        neuron.bias.copy_(torch.from_numpy(np.broadcast_to(bias, (channels,)).copy()))
        for logit, decay in zip((neuron.decay_u_logit, neuron.decay_v_logit), decays, strict=True):
            logit.copy_(torch.tensor(decay[0] if shared else decay).clamp(1e-6, 1 - 1e-6).logit())
    layer = SpikingLayer(synapse, neuron, nn.Identity())
    refuse_not_finite(name, layer)
    return layer
