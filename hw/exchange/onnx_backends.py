"""The exported ONNX graphs as simulators: onnxruntime on the step and on its Scan, and QONNX's own executor.

Each runs the very graph that an export writes, so that a comparison with the reference is one of the file.
"""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from hw.errors import UserError
from hw.exchange.onnx_scan import scan_model
from hw.exchange.onnx_step import StepGraph
from hw.exchange.session import session_of
from hw.program import Recurrent, SpikingProgram
from hw.simulate.base import LayerState, Result, State, check_spikes, check_state, initial_state, refuse_streams


class _Stepped(ABC):
    """Runs a step graph T times, its states carried along in the names of the graph."""

    name: str

    def __init__(self, program: SpikingProgram) -> None:
        self.program = program

    @abstractmethod
    def _step(self, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The graph's outputs of one step, by name, from its inputs."""

    def run(
        self, spikes: np.ndarray, *, layers: bool = False, states: bool = False, state: State | None = None
    ) -> Result:
        program = self.program
        spikes = check_spikes(program, spikes, stream=state is not None)
        check_state(program, state or {}, spikes.shape[1])
        values = _graph_state(program, state or {}, spikes.shape[1])
        kept: dict[str, list[np.ndarray]] = {}
        for s in spikes.astype(np.float32):
            found = self._step({**values, "spikes": s})
            values = {key: found[f"{key}_next"] for key in values}
            for key, value in found.items():
                kept.setdefault(key, []).append(value)

        def series(name: str, key: str) -> np.ndarray:
            return np.stack(kept[f"{name}.{key}"])

        names = [layer.name for layer in program.synaptic]
        output = series(names[-1], "spikes").astype(np.uint8).reshape(*spikes.shape[:2], *program.output_shape)
        return Result(
            output=output,
            layers={name: series(name, "spikes").astype(np.uint8) for name in names} if layers else {},
            u={name: series(name, "u_next") for name in names} if states else {},
            v={name: series(name, "v_next") for name in names} if states else {},
            state={} if state is None else _state_of(program, values, kept),
        )


class StepBackend(_Stepped):
    """onnxruntime on the QCDQ step graph."""

    name = "onnx-step"

    def __init__(self, program: SpikingProgram) -> None:
        super().__init__(program)
        self.session = session_of(StepGraph(program, "qcdq").model().SerializeToString())
        self.outputs = [output.name for output in self.session.get_outputs()]

    def _step(self, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(self.outputs, self.session.run(self.outputs, values), strict=True))


class QonnxBackend(_Stepped):
    """QONNX's executor on the QONNX step graph, node by node: slow, and not ours, which is its worth."""

    name = "qonnx"

    def __init__(self, program: SpikingProgram) -> None:
        super().__init__(program)
        self.models: dict[int, Any] = {}  # by batch, which is fixed in a graph that QONNX executes

    def _step(self, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        from qonnx.core.modelwrapper import ModelWrapper
        from qonnx.core.onnx_exec import execute_onnx

        batch = len(values["spikes"])
        if batch not in self.models:
            self.models[batch] = ModelWrapper(StepGraph(self.program, "qonnx", batch).model())
        return execute_onnx(self.models[batch], values)


class ScanBackend:
    """onnxruntime on the QCDQ step in a Scan, one call for all T steps."""

    name = "onnx-scan"

    def __init__(self, program: SpikingProgram) -> None:
        self.program = program
        self.session = session_of(scan_model(program).SerializeToString())
        self.outputs = [output.name for output in self.session.get_outputs()]

    def run(
        self, spikes: np.ndarray, *, layers: bool = False, states: bool = False, state: State | None = None
    ) -> Result:
        refuse_streams(self.name, state)
        if states:
            raise UserError(f"backend '{self.name}' gives no u and v; choose 'onnx-step', the same graph step by step")
        spikes = check_spikes(self.program, spikes)
        found = self.session.run(self.outputs, {"spikes": spikes.astype(np.float32)})
        of_layer = {
            name.removesuffix(".spikes"): value.astype(np.uint8)
            for name, value in zip(self.outputs, found, strict=True)
        }
        output = of_layer[self.program.synaptic[-1].name].reshape(*spikes.shape[:2], *self.program.output_shape)
        return Result(output=output, layers=of_layer if layers else {})


def _graph_state(program: SpikingProgram, state: State, samples: int) -> dict[str, np.ndarray]:
    """The step graph's state inputs, by name."""
    values: dict[str, np.ndarray] = {}
    for layer in program.synaptic:
        held = state.get(layer.name) or initial_state(layer, samples, program.shapes[layer.name])
        values |= {f"{layer.name}.u": held.u, f"{layer.name}.v": held.v}
        if len(held.waiting):
            values[f"{layer.name}.waiting"] = held.waiting.astype(np.float32)
        if isinstance(layer, Recurrent):
            values[f"{layer.name}.last"] = held.last.astype(np.float32)
    return values


def _state_of(program: SpikingProgram, values: dict[str, np.ndarray], kept: dict[str, list[np.ndarray]]) -> State:
    found: State = {}
    for layer in program.synaptic:
        last = kept[f"{layer.name}.spikes"][-1]
        waiting = values.get(f"{layer.name}.waiting")
        if waiting is None:
            waiting = initial_state(layer, len(last), program.shapes[layer.name]).waiting
        u, v = values[f"{layer.name}.u"], values[f"{layer.name}.v"]
        found[layer.name] = LayerState(u=u, v=v, waiting=waiting.astype(np.int64), last=last.astype(np.int64))
    return found
