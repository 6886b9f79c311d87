"""Any torch module that is a chain of synapses and CUBA-LIF neurons, as the `LayerStack` that quantization takes.

The module runs once on random spikes, and what its layers hand to each other is followed. So it may be written in any
way, as long as nothing but reshaping lies between its layers: `nn.Linear` or `nn.Conv2d` without bias, a
`FoldableNorm` if wanted, `CubaLIF`.
"""

from collections import OrderedDict
from collections.abc import Container
from dataclasses import dataclass
from math import prod
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ashnets.neurons import CubaLIF
from ashnets.stack import FoldableNorm, LayerStack, SpikingLayer
from hw.errors import UserError

_PASSING = (nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout, nn.Dropout2d)
_BATCH = 2
_FIXES: dict[type[nn.Module], str] = {
    nn.modules.batchnorm._BatchNorm: "its mean is filtered by the current's decay and cannot be folded; use "
    "ashnets.stack.FoldableNorm, which only scales",
    nn.ReLU: "the chip's nonlinearity is the neuron; use ashnets.neurons.CubaLIF",
    nn.MaxPool2d: "the chip holds no pooling; use a convolution with a stride",
    nn.AvgPool2d: "the chip holds no pooling; use a convolution with a stride",
}


@dataclass
class _Call:
    path: str
    module: nn.Module
    given: "_Seen"
    made: "_Seen"


@dataclass
class _Seen:
    """What was given or made, most often a tensor. version: how often its memory had been written to by then."""

    tensor: Any
    version: int

    @classmethod
    def now(cls, tensor: Any) -> "_Seen":
        return cls(tensor, getattr(tensor, "_version", 0))


@torch.inference_mode(False)  # whose tensors count no versions
@torch.no_grad()
def as_stack(network: nn.Module, input_shape: tuple[int, ...], steps: int) -> LayerStack:
    """The chain of `network`'s own layers (shared, not copied). It takes spikes [T, B, *input_shape].

    `UserError` names the module that cannot be lowered by its path, and what to do.
    """
    synapses = {p: module for p, module in network.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))}
    for path, module in synapses.items():
        if "weight" not in dict(module.named_parameters(recurse=False)):
            _refuse(
                path,
                "makes its weight anew at every call (pruning, weight norm, a parametrization); make it permanent "
                "first: torch.nn.utils.prune.remove, or torch.nn.utils.parametrize.remove_parametrizations",
            )
    if isinstance(network, LayerStack):
        for path, module in synapses.items():
            _check_module(path, module)
        return network
    for path, module in network.named_modules():
        for kind, fix in _FIXES.items():
            if isinstance(module, kind):
                _refuse(path, f"is {_what(module)}; {fix}")
    calls: list[_Call] = []
    handles = [
        module.register_forward_hook(_record(calls, path), with_kwargs=True)
        for path, module in network.named_modules()
        if not any(True for _ in module.children())
    ]
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    s_in = _Seen.now((torch.rand(steps, _BATCH, *input_shape, device=device) < 0.5).float())
    modes = [(module, module.training) for module in network.modules()]
    try:
        output = network.eval()(s_in.tensor)
    except UserError:
        raise
    except ValueError as error:  # neurons for another number of channels
        raise UserError(f"the network cannot be run: {error}") from error
    except RuntimeError as error:
        raise UserError(
            f"the network does not take spikes of shape [T={steps}, B, {', '.join(map(str, input_shape))}] "
            f"({str(error).splitlines()[0]}); give the shape of one step's input"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    layers, shape = _chain(calls, s_in, input_shape)
    _check_end(calls, output)
    _check_all_called(network, calls)
    return LayerStack(layers, input_shape, shape, steps)


def _record(calls: list[_Call], path: str) -> Any:
    def hook(module: nn.Module, given: tuple[Tensor, ...], named: dict[str, Tensor], made: Tensor) -> None:
        if any(call.module is module for call in calls):
            _refuse(
                path, "is called twice; a program is a chain, give every layer its own module and all T steps at once"
            )
        calls.append(_Call(path, module, _Seen.now(next(iter((*given, *named.values())), None)), _Seen.now(made)))

    return hook


def _chain(calls: list[_Call], s_in: _Seen, shape: tuple[int, ...]) -> tuple[OrderedDict[str, nn.Module], tuple]:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    last, before, steps = s_in, "the input", len(s_in.tensor)
    synapse: _Call | None = None
    norm: nn.Module | None = None
    for call in calls:
        if not _same_values(call.given, last):
            _refuse(
                call.path,
                f"takes something else than {before} gave; only reshaping may lie between layers (no sums, residuals, "
                "concatenation, reordering or writing in place)",
            )
        module = call.module
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            if synapse is not None:
                _refuse(call.path, f"follows '{synapse.path}' without neurons between; put a CubaLIF there")
            _check_synapse(call, shape)
            if isinstance(module, nn.Linear) and len(shape) > 1:
                layers[free_name("flatten", layers)], shape = nn.Flatten(2), (prod(shape),)
            synapse, shape = call, tuple(call.made.tensor.shape[-len(shape) :])
        elif isinstance(module, FoldableNorm):
            if synapse is None or norm is not None:
                _refuse(call.path, "does not stand between a synapse and its neurons; move it there")
            _check_shape(call, synapse, len(module.gain), (steps * _BATCH, *shape), "x.flatten(0, 1)")
            norm = module
        elif isinstance(module, CubaLIF):
            if synapse is None:
                _refuse(call.path, "has no synapses of its own; put a Linear or Conv2d in front")
            assert isinstance(synapse.module, (nn.Linear, nn.Conv2d))
            _check_shape(call, synapse, len(module.bias), (steps, _BATCH, *shape), "x.unflatten(0, (T, B))")
            layers[free_name(_name(synapse.path), layers)] = SpikingLayer(synapse.module, module, norm or nn.Identity())
            synapse, norm = None, None
        elif not isinstance(module, _PASSING):
            _refuse(call.path, f"is {_what(module)}, which the chip does not hold; leave it outside of the network")
        last, before = call.made, f"'{call.path}'"
    if not layers:
        raise UserError("the network calls no CubaLIF; give it at least one Linear or Conv2d with CubaLIF neurons")
    if synapse is not None:
        _refuse(synapse.path, "has no neurons behind it; end the network with CubaLIF, or keep it as a readout outside")
    return layers, shape


def _check_module(path: str, module: nn.Linear | nn.Conv2d) -> None:
    """What a synapse must be, whatever it is given."""
    if module.bias is not None:
        _refuse(
            path,
            "has a bias, which the current's decay would filter; the chip adds its bias to the membrane: use "
            "bias=False and the CubaLIF's own bias (bias / decay_u is the same in the long run)",
        )
    if isinstance(module, nn.Conv2d) and (module.padding_mode != "zeros" or isinstance(module.padding, str)):
        _refuse(path, f"pads by {module.padding_mode!r} {module.padding!r}; pad with zeros by numbers")


def _check_synapse(call: _Call, shape: tuple[int, ...]) -> None:
    module, path = call.module, call.path
    assert isinstance(module, (nn.Linear, nn.Conv2d))
    _check_module(path, module)
    if isinstance(module, nn.Conv2d):
        if len(shape) != 3:
            _refuse(path, f"is a convolution on {shape}, which a layer before has flattened; keep (C, H, W)")
        if tuple(call.given.tensor.shape[-3:]) != shape:
            _refuse(path, f"runs on {list(call.given.tensor.shape)}; keep the (C, H, W) that it is given, {shape}")
    elif module.in_features != prod(shape):
        _refuse(path, f"takes {module.in_features} of the {prod(shape)} values of a step {shape}; flatten them first")


def _check_shape(call: _Call, synapse: _Call, channels: int, expected: tuple[int, ...], fix: str) -> None:
    """Refuse a norm or neurons of other channels than the synapse in front, or on another shape than `expected`."""
    found, given = call.given.tensor.shape, synapse.module.get_parameter("weight").shape[0]
    if channels != given:
        _refuse(call.path, f"has {channels} channels, '{synapse.path}' in front gives {given}; make them as many")
    if found != expected:
        _refuse(
            call.path, f"runs on {list(found)}, all T steps of what '{synapse.path}' gave are {list(expected)}; {fix}"
        )


def _check_end(calls: list[_Call], output: Any) -> None:
    if not _same_values(_Seen.now(output), calls[-1].made):
        raise UserError(
            "the network gives something else than its last neurons' spikes; leave the readout (a sum or mean over "
            "time, a classifier) outside of it"
        )


def _check_all_called(network: nn.Module, calls: list[_Call]) -> None:
    called = {id(call.module) for call in calls}
    for path, module in network.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, CubaLIF, FoldableNorm)) and id(module) not in called:
            _refuse(path, "is never called; remove it, or call it")


def _same_values(seen: _Seen, before: _Seen) -> bool:
    """Whether one is the other in another shape, in the same order, and nothing wrote to it between."""
    a, b = seen.tensor, before.tensor
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return False
    same = a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr() and a.numel() == b.numel()
    return same and a.is_contiguous() and b.is_contiguous() and seen.version == before.version


def _name(path: str) -> str:
    """A layer's name: its synapse's path, without what all of a stack's have in common."""
    return path.removesuffix(".synapse").removeprefix("layers.")


def free_name(wanted: str, taken: Container[str]) -> str:
    """A name for a layer of a stack, as near as torch takes it to the one that is wanted: 'a.b' -> 'a_b', or 'a_b_'
    where that is taken."""
    name = wanted.replace(".", "_")
    while not name or name in taken or hasattr(nn.Sequential(), name):
        name += "_"
    return name


def _what(module: nn.Module) -> str:
    return f"{type(module).__module__.removeprefix('torch.nn.modules.')}.{type(module).__name__}"


def _refuse(path: str, reason: str) -> NoReturn:
    raise UserError(f"module '{path or 'the network itself'}' {reason}")
