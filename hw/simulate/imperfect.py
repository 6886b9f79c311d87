"""A simulated chip with flaws: the same network, run by neurons and synapses some of which do not do what they should.

    dead     share of neurons that never spike
    stuck    share of weights that hold their layer's smallest or largest weight, whatever was written there
    spread   standard deviation of each threshold's factor: v_th_mant (1 + spread n), n normal, one n for each neuron
             of a dense layer and for each channel of a convolution, whose neurons share their threshold

A seed stands for one copy of the chip: which neurons, weights and thresholds are flawed depends on it, the layer's
name and its shape alone, not on what is written there. As a backend: `imperfect:dead=0.1,stuck=0.01,spread=0.2,seed=3`.
"""

import zlib
from dataclasses import fields, replace
from typing import Any

import numpy as np

from hw.errors import UserError
from hw.layers import Conv, Dense, Flatten, Recurrent
from hw.loihi import V_TH_MANT_MAX
from hw.program import SpikingProgram
from hw.simulate.base import Result, State, check_spikes, refuse_streams
from hw.simulate.events import EventsBackend
from hw.validate import validate


class ImperfectBackend:
    """Behind the interface that all backends share; it runs whole samples."""

    name = "imperfect"

    def __init__(
        self, program: SpikingProgram, *, dead: float = 0.05, stuck: float = 0.02, spread: float = 0.1, seed: float = 0
    ) -> None:
        for key, value in (("dead", dead), ("stuck", stuck), ("spread", spread)):
            if not 0 <= value <= 1:
                raise UserError(f"backend 'imperfect': {key} is {value:g}, a share is in 0..1")
        if seed < 0 or seed % 1 != 0:
            raise UserError(f"backend 'imperfect': seed is {seed:g}, a whole number from 0 on is needed")
        self.program = validate(program)
        self.parts: list[tuple[EventsBackend, np.ndarray]] = []
        for i, layer in enumerate(program.layers):
            if isinstance(layer, Flatten):
                continue
            rng = np.random.default_rng([int(seed), zlib.crc32(layer.name.encode())])
            alive = rng.random(program.shapes[layer.name]) >= dead
            flawed = _flawed(layer, stuck, spread, rng)
            if isinstance(flawed, Recurrent) and not alive.all():
                # Its own dead neurons are heard by nobody, through no stuck weight either; those behind it are told by
                # `alive`.
                flawed = replace(flawed, weight_rec_int=np.where(alive, flawed.weight_rec_int, 0))
            alone = replace(program.part(i, i + 1), layers=(flawed,))
            self.parts.append((EventsBackend(alone), alive))

    def run(
        self, spikes: np.ndarray, *, layers: bool = False, states: bool = False, state: State | None = None
    ) -> Result:
        refuse_streams(self.name, state)
        s = check_spikes(self.program, spikes)
        kept: dict[str, np.ndarray] = {}
        us: dict[str, np.ndarray] = {}
        vs: dict[str, np.ndarray] = {}
        for (backend, alive), layer in zip(self.parts, self.program.synaptic, strict=True):
            result = backend.run(s.reshape(*s.shape[:2], *backend.program.input_shape), states=states)
            s = result.output * alive
            kept[layer.name] = s
            us |= result.u
            vs |= result.v
        output = s.reshape(*s.shape[:2], *self.program.output_shape)
        return Result(output=output, layers=kept if layers else {}, u=us, v=vs)


def _flawed(layer: Conv | Dense, stuck: float, spread: float, rng: np.random.Generator) -> Conv | Dense:
    changes: dict[str, Any] = {}
    for item in fields(layer):
        if item.name.startswith("weight_") and item.name.endswith("_int"):
            weight = getattr(layer, item.name)
            at = rng.random(weight.shape) < stuck
            value = np.where(rng.random(weight.shape) < 0.5, weight.min(), weight.max())
            changes[item.name] = np.where(at, value, weight)
    factor = 1 + spread * rng.standard_normal(layer.channels)
    changes["v_th_mant"] = np.rint(layer.v_th_mant * factor).astype(np.int64).clip(0, V_TH_MANT_MAX)
    return replace(layer, **changes)
