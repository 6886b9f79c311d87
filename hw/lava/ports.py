"""Lava processes that read spikes from a file and write spikes to a file, one bit each (graded input: int32).

Lava's own RingBuffer moves data through `data.get()`, value by value, which costs more than the simulation. Here a
model maps the file into its memory. Files are in the program's (C, H, W) order and netx works in (W, H, C): each is the
other's `.T`, and a vector is its own.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Ports:
    """Lava process classes, both with parameters `shape` (as netx has it) and `path`, and their models."""

    source: type
    source_model: type
    sink: type
    sink_model: type


def make_ports(lava: SimpleNamespace) -> Ports:
    """The classes, made here so that importing this module does not import Lava."""
    vector_in = lava.py_type.LavaPyType(lava.py_ports.PyInPort.VEC_DENSE, np.int32)
    vector_out = lava.py_type.LavaPyType(lava.py_ports.PyOutPort.VEC_DENSE, np.int32)

    class Source(lava.process.AbstractProcess):
        def __init__(self, *, shape: tuple[int, ...], path: str) -> None:
            super().__init__(shape=shape, path=path)
            self.out = lava.ports.OutPort(shape=shape)

    class Sink(lava.process.AbstractProcess):
        def __init__(self, *, shape: tuple[int, ...], path: str) -> None:
            super().__init__(shape=shape, path=path)
            self.inp = lava.ports.InPort(shape=shape)

    @lava.decorator.implements(proc=Source, protocol=lava.protocol.LoihiProtocol)
    @lava.decorator.requires(lava.resources.CPU)
    class SourceModel(lava.py_model.PyLoihiProcessModel):
        out: Any = vector_out

        def __init__(self, proc_params: Any) -> None:
            super().__init__(proc_params)
            self.file_shape = proc_params["shape"][::-1]
            self.rows = np.load(proc_params["path"], mmap_mode="r")

        def run_spk(self) -> None:
            row = self.rows[self.time_step - 1]
            if row.dtype == np.uint8:
                row = np.unpackbits(row, count=int(np.prod(self.file_shape)))
            self.out.send(row.reshape(self.file_shape).T)

    @lava.decorator.implements(proc=Sink, protocol=lava.protocol.LoihiProtocol)
    @lava.decorator.requires(lava.resources.CPU)
    class SinkModel(lava.py_model.PyLoihiProcessModel):
        inp: Any = vector_in

        def __init__(self, proc_params: Any) -> None:
            super().__init__(proc_params)
            self.rows = np.load(proc_params["path"], mmap_mode="r+")

        def run_spk(self) -> None:
            self.rows[self.time_step - 1] = np.packbits(self.inp.recv().T != 0)

    return Ports(source=Source, source_model=SourceModel, sink=Sink, sink_model=SinkModel)
