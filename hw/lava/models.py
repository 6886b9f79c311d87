"""Lava's own models with two things added: they forget what was on its way when a new sample starts, and they show
their states. The arithmetic of a step stays Lava's.

Samples are streamed back to back (see `hw.lava.backend`). netx resets u and v between them, but not the input that a
synapse has summed up and still holds: a recurrent layer would hear the last spikes of the sample before, and a delayed
spike would arrive in the next one.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

START = "sample_start"  # parameter of a synapse: (T, first step of a sample modulo T), as the synapse counts
STATE_FILE = "state_file"  # parameter of a neuron: rows int32 [2, neurons], u and v after each step


@dataclass(frozen=True, kw_only=True)
class Models:
    """Subclasses of Lava's `fixed_pt` models: of a delayed synapse, of a recurrent one, and of neurons."""

    delayed: type
    recurrent: type
    neuron: type


def make_models(lava: SimpleNamespace) -> Models:
    """The classes, made here so that importing this module does not import Lava."""

    class Delayed(lava.dense.PyDelayDenseModelBitAcc):
        def run_spk(self) -> None:
            interval, first = self.proc_params[START]
            if self.time_step % interval == first % interval:
                self.a_buff[:, 1:] = 0  # column 0 goes out in this step, still to the sample before
            super().run_spk()

    class Recurrent(lava.dense.PyDenseModelBitAcc):
        def run_spk(self) -> None:
            interval, first = self.proc_params[START]
            if self.time_step % interval == first % interval:
                self.a_buff[:] = 0
            super().run_spk()

    class Neuron(lava.lif.PyLifResetModelBitAcc):
        def __init__(self, proc_params: Any) -> None:
            super().__init__(proc_params)
            self.rows = np.load(proc_params[STATE_FILE], mmap_mode="r+")

        def run_spk(self) -> None:
            super().run_spk()
            self.rows[self.time_step - 1, 0] = self.u.T.ravel()  # netx works in (W, H, C)
            self.rows[self.time_step - 1, 1] = self.v.T.ravel()

    return Models(delayed=Delayed, recurrent=Recurrent, neuron=Neuron)
