"""The backend for real chips: refused where Lava has no extension for them; elsewhere the network stands between its
adapters. The extension is not public: a package with adapters in Python stands in, so that Lava's own `Loihi2HwCfg`
falls back to simulated layers."""

import sys

import numpy as np
import pytest

from ashnets.cli import main
from hw import Conv, Dense, Flatten, Recurrent, SpikingProgram, UserError
from hw.program_file import save_program
from hw.simulate import open_backend

ADAPTERS = """
import numpy as np
from lava.magma.core.decorator import implements, requires
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort, PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol

class PyToNxAdapter(AbstractProcess):
    def __init__(self, *, shape, num_message_bits=0):
        AbstractProcess.__init__(self, shape=shape)
        self.inp, self.out = InPort(shape=shape), OutPort(shape=shape)
        print(f"adapter {num_message_bits}")

class NxToPyAdapter(AbstractProcess):
    __init__ = PyToNxAdapter.__init__

class Pass(PyLoihiProcessModel):
    inp: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32)
    out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32)
    def run_spk(self):
        self.out.send(self.inp.recv())

@implements(proc=PyToNxAdapter, protocol=LoihiProtocol)
@requires(CPU)
class PyToNxModel(Pass):
    pass

@implements(proc=NxToPyAdapter, protocol=LoihiProtocol)
@requires(CPU)
class NxToPyModel(Pass):
    pass
"""

EXTENSION = {
    "proc/embedded_io/spike.py": ADAPTERS,
    "utils/loihi2_profiler.py": "",
    "magma/core/model/c/model.py": "class CLoihiProcessModel: pass",
    "magma/core/model/nc/model.py": "class AbstractNcProcessModel: pass",
}


def layer(kind=Dense, **values):
    return kind(name="fc", weight_int=np.eye(3, dtype=int), decay_u_int=4096, decay_v_int=0, v_th_mant=1, **values)


PROGRAM = SpikingProgram(input_shape=(3,), steps=4, layers=(layer(),))


@pytest.fixture
def extension(tmp_path, monkeypatch):
    for name, text in EXTENSION.items():
        path = tmp_path / "lava" / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    yield
    for name in [name for name in sys.modules if name.startswith("lava.utils")]:
        del sys.modules[name]


def test_without_the_extension_it_is_refused_in_one_line(tmp_path, capsys):
    save_program(PROGRAM, tmp_path / "program")
    np.save(tmp_path / "spikes.npy", np.zeros((4, 3), np.uint8))
    command = ["simulate", "--program", tmp_path / "program", "--input", tmp_path / "spikes.npy"]
    assert main([*map(str, command), "--out", str(tmp_path / "out.npy"), "--backend", "loihi2"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "backend 'loihi2' needs lava-loihi" in error
    assert not (tmp_path / "out.npy").exists()


@pytest.mark.usefixtures("extension")
def test_with_the_extension_the_network_stands_between_its_adapters():
    """Samples of one step from zero states: there Lava's real neurons, which that configuration takes, spike like the
    integer ones."""
    grid = Conv(name="conv", weight_int=[[[[2]]], [[[1]]]], decay_u_int=4096, decay_v_int=0, v_th_mant=1)
    weight = np.tril(np.full((8, 8), 2))
    fc = Dense(name="fc", weight_int=weight, decay_u_int=4096, decay_v_int=0, v_th_mant=1)
    program = SpikingProgram(input_shape=(1, 2, 2), steps=1, layers=(grid, Flatten(), fc))
    spikes = np.random.default_rng(1).integers(0, 2, (1, 9, 1, 2, 2), dtype=np.uint8)
    truth = open_backend("reference", program).run(spikes, layers=True)
    found = open_backend("loihi2", program).run(spikes, layers=True)
    assert 0 < truth.output.mean() < 1
    for name in ("conv", "fc"):
        np.testing.assert_array_equal(found.layers[name], truth.layers[name])
    np.testing.assert_array_equal(found.output, truth.output)


@pytest.mark.usefixtures("extension")
@pytest.mark.parametrize("kind", ["recurrent", "delayed"])
def test_what_would_leak_from_sample_to_sample_is_refused_by_layer(kind):
    odd = layer(Recurrent, weight_rec_int=np.eye(3, dtype=int)) if kind == "recurrent" else layer(delay=2)
    with pytest.raises(UserError, match="layer 'fc': is recurrent or delayed"):
        open_backend("loihi2", SpikingProgram(input_shape=(3,), steps=4, layers=(odd,)))
    with pytest.raises(UserError, match="gives spikes alone"):
        open_backend("loihi2", PROGRAM).run(np.zeros((4, 1, 3)), states=True)
