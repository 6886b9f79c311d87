"""Make lava-nc 0.10.0 and lava-dl 0.6.0 importable and right on a modern Python, from outside the packages.

Both are archived upstream, so the mends live here. Each says why it exists, and `Mend.needed` shows that it still does,
by running its probe in a fresh interpreter without it. Importing this module imports neither Lava nor torch;
`import_netx` imports Lava.
"""

import dataclasses
import importlib
import importlib.util
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from hw.errors import UserError

MODULES = {
    "actors": "lava.magma.runtime.message_infrastructure.multiprocessing",
    "blocks": "lava.lib.dl.netx.blocks.models",
    "conv": "lava.proc.conv.models",
    "decorator": "lava.magma.core.decorator",
    "dense": "lava.proc.dense.models",
    "hdf5": "lava.lib.dl.netx.hdf5",
    "lif": "lava.proc.lif.models",
    "netx_utils": "lava.lib.dl.netx.utils",
    "ports": "lava.magma.core.process.ports.ports",
    "process": "lava.magma.core.process.process",
    "protocol": "lava.magma.core.sync.protocols.loihi_protocol",
    "py_model": "lava.magma.core.model.py.model",
    "py_ports": "lava.magma.core.model.py.ports",
    "py_type": "lava.magma.core.model.py.type",
    "resources": "lava.magma.core.resources",
    "run_conditions": "lava.magma.core.run_conditions",
    "run_configs": "lava.magma.core.run_configs",
    "weightutils": "lava.utils.weightutils",
}
"""What we use of Lava: attribute of the result of `import_netx` -> module."""


@dataclass(frozen=True, kw_only=True)
class Mend:
    """`around` wraps Lava's import; `after` changes what was imported.

    probe: code that passes with the mend and fails without. `setup` runs before Lava's import, `probe` after it, with
    the result of `import_netx` as `lava`.
    """

    name: str
    why: str
    setup: str = ""
    probe: str = ""
    around: Callable[[], AbstractContextManager[None]] = nullcontext
    after: Callable[[SimpleNamespace], None] = lambda lava: None

    def works(self, *, without: bool = False) -> bool:
        """True if the probe passes with all mends, or all others. Starts Python and Lava, some two seconds."""
        name = repr(self.name if without else None)
        lines = (
            self.setup,
            "from hw.lava.compat import import_netx",
            f"lava = import_netx(without={name})",
            self.probe,
        )
        command = [sys.executable, "-c", "\n".join(lines)]
        return subprocess.run(command, env=environment(), capture_output=True, check=False).returncode == 0

    def needed(self) -> bool:
        """True if the probe fails without the mend."""
        return not self.works(without=True)


def environment() -> dict[str, str]:
    """For a Python process that can import `hw` and stays quiet about the shared memory that it cleans up."""
    paths = [str(Path(__file__).parents[2]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONWARNINGS": "ignore:resource_tracker",
    }


def require_lava() -> None:
    """`UserError` if lava-nc or lava-dl is not installed. Imports neither."""
    for package, version in (("lava-nc", "0.10.0"), ("lava-dl", "0.6.0")):
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError as error:
            raise UserError(
                f"backend 'lava' needs {package}, which is not installed; run `uv pip install {package}=={version}` "
                "with the overrides of pyproject.toml, or choose another backend"
            ) from error


def require_loihi() -> None:
    """`UserError` where Lava has no extension for real chips; Lava's own check (`lava.utils.loihi.is_installed`)."""
    if importlib.util.find_spec("lava.utils.loihi2_profiler") is None:
        raise UserError(
            "backend 'loihi2' needs lava-loihi, which is not installed; Intel gives it to members of its research "
            "community (INRC); install it, or choose backend 'lava' for the simulation"
        )


def import_netx(*, without: str | None = None, stock: bool = False) -> SimpleNamespace:
    """Import `MODULES` with every mend but `without`, or, `stock`, with none. Lava sets multiprocessing's start method
    to fork."""
    chosen = [mend for mend in MENDS if mend.name != without and not stock]
    with ExitStack() as stack:
        for mend in chosen:
            stack.enter_context(mend.around())
        lava = SimpleNamespace(**{key: importlib.import_module(name) for key, name in MODULES.items()})
    for mend in chosen:
        mend.after(lava)
    return lava


def mends() -> list[tuple[str, str, bool]]:
    """(name, why, needed) of every mend; some five seconds."""
    with ThreadPoolExecutor() as pool:
        return [(mend.name, mend.why, needed) for mend, needed in zip(MENDS, pool.map(Mend.needed, MENDS), strict=True)]


@contextmanager
def _replaced(owner: ModuleType, name: str, value: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def _hashable_defaults() -> AbstractContextManager[None]:
    original = dataclasses.dataclass

    def hashable(cls: type | None = None, /, **options: bool) -> Any:
        if cls is None:
            return partial(hashable, **options)
        made = original(cls, **options)
        if made.__module__.startswith("lava.") and made.__hash__ is None:
            made.__hash__ = object.__hash__
        return made

    return _replaced(dataclasses, "dataclass", hashable)


def _forced_start_method() -> AbstractContextManager[None]:
    return _replaced(multiprocessing, "set_start_method", partial(multiprocessing.set_start_method, force=True))


def _no_rf(*_: object) -> None:
    raise NotImplementedError("resonate-and-fire neurons need lava-dl's slayer, which this backend leaves out")


@contextmanager
def _without_torch() -> Iterator[None]:
    slayer, rf = "lava.lib.dl.slayer", "lava.lib.dl.slayer.neuron.rf"
    names = (slayer, f"{slayer}.neuron", rf, "lava.lib.dl.netx.sequential_modules")
    placeholders = {name: ModuleType(name) for name in names if name not in sys.modules}
    for module in placeholders.values():
        module.__dict__.update(__path__=[], neuron_params=_no_rf)
    sys.modules.update(placeholders)
    try:
        yield
    finally:
        for name in placeholders:
            del sys.modules[name]


def _mend_reshape_port(lava: SimpleNamespace) -> None:
    port = lava.ports.ReshapePort
    port.get_transform_func_fwd = lambda self: partial(np.reshape, shape=self.shape)
    port.get_transform_func_bwd = lambda self: partial(np.reshape, shape=self.old_shape)


def _mend_conv_geometry(lava: SimpleNamespace) -> None:
    for name in ("kernel_size", "stride", "padding", "dilation", "groups"):
        setattr(lava.conv.AbstractPyConvModel, name, lava.py_type.LavaPyType(np.ndarray, np.int32))


def _mend_worker_tracebacks(lava: SimpleNamespace) -> None:
    # Python's own `run` lets the exception through: its traceback goes to stderr at once and the worker exits with 1.
    lava.actors.SystemProcess.run = multiprocessing.Process.run


MENDS = (
    Mend(
        name="hashable-defaults",
        why="var_model has dataclass instances as field defaults, which Python >= 3.11 refuses as unhashable",
        around=_hashable_defaults,
    ),
    Mend(
        name="start-method",
        why="Lava calls multiprocessing.set_start_method('fork') at import, which fails where one was chosen before",
        setup="import multiprocessing; multiprocessing.set_start_method('fork')",
        around=_forced_start_method,
    ),
    Mend(
        name="without-torch",
        why="netx imports torch, torchvision and OpenCV and needs none of them; torch inside a Lava process hangs",
        probe="import sys; assert 'torch' not in sys.modules",
        around=_without_torch,
    ),
    Mend(
        name="reshape-port",
        why="ReshapePort (conv -> flatten -> dense) calls np.reshape(newshape=...), which new numpy refuses",
        probe="import numpy; lava.ports.ReshapePort((6,), (2, 3)).get_transform_func_fwd()(numpy.zeros((2, 3)))",
        after=_mend_reshape_port,
    ),
    Mend(
        name="conv-geometry",
        why="Lava's conv model keeps groups and geometry in int8: 128 groups raise OverflowError, or wrap in old numpy",
        probe="import numpy; numpy.zeros(1, lava.conv.PyConvModelFixed.groups.d_type)[:] = 128",
        after=_mend_conv_geometry,
    ),
    Mend(
        name="worker-tracebacks",
        why="a crashed Lava worker logs its traceback at INFO only, exits with 0 and leaves the others waiting for it",
        probe=(
            "import multiprocessing; worker = lava.actors.SystemProcess(target=int, args=('x',)); worker.start()\n"
            "multiprocessing.Process.join(worker); assert worker.exitcode == 1"
        ),
        after=_mend_worker_tracebacks,
    ),
)
