"""Run a program on Lava's bit-accurate Loihi 2 simulation, in a process of its own that leaves nothing behind.

One netx network takes all samples back to back. A layer is one step behind its input, so layer i (from 1) gives
sample k at steps [kT + i, (k + 1)T + i), and N zero steps at the end let the last of N layers finish. Lava resets
layer i at the step where its sample starts, so that each layer runs T steps from zero states: what happens in the
pipeline stays invisible outside.
"""

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from math import prod
from pathlib import Path
from typing import IO, cast

import numpy as np

from hw.artifact import read_json, write_json
from hw.errors import BackendError, RefusedError, UserError
from hw.lava.compat import environment, require_lava, require_loihi
from hw.netx_file import write_net
from hw.program import Conv, Dense, Flatten, Input, Recurrent, SpikingProgram
from hw.simulate.base import Result, State, check_spikes, refuse_streams

LOG_LIMIT = 20000  # characters of the runner's log that an error carries: its end, where the traceback is
GRACE_SECONDS = 5.0  # for processes that were asked to end


@dataclass(frozen=True, kw_only=True)
class Deadline:
    """Seconds that a run may take: `start + steps * (step + pair * channel pairs)`.

    Lava's convolution loops over pairs of an input and an output channel in Python. It is a guard against hangs, so it
    is far above the need: 4-10 us a pair and 1 ms a step were measured.
    """

    start: float = 300.0
    step: float = 0.5
    pair: float = 0.002

    def seconds(self, program: SpikingProgram, steps: int) -> float:
        pairs = sum(
            layer.weight_int.shape[0] * layer.weight_int.shape[1]
            for layer in program.synaptic
            if isinstance(layer, Conv)
        )
        return self.start + steps * (self.step + self.pair * pairs)


class LavaBackend:
    """Lava behind the interface that all backends share.

    stock: 1 for Lava as it was released, without the mends of `hw.lava.compat`. It needs Python 3.10 and the packages
    that Lava pins; a worker there is the oracle that the mended Lava is held against.

    `RefusedError` at once for a program that netx would not hold exactly; `BackendError` with Lava's traceback for a
    run that fails.
    """

    name = "lava"
    run_cfg = "Loihi2SimCfg"

    def __init__(self, program: SpikingProgram, *, deadline: Deadline = Deadline(), stock: float = 0) -> None:
        self.program = program
        self.stock = bool(stock)
        self.deadline = deadline
        self.seconds: dict[str, float] = {}  # of the last run: "start", and "steps", all but the first
        with tempfile.TemporaryDirectory(prefix="ashnets-lava-") as folder:
            self._net = write_net(for_netx(program), Path(folder) / "network.net").read_bytes()
        require_lava()

    def run(
        self, spikes: np.ndarray, *, layers: bool = False, states: bool = False, state: State | None = None
    ) -> Result:
        refuse_streams(self.name, state)
        spikes = check_spikes(self.program, spikes)
        names = [layer.name for layer in self.program.synaptic]
        wanted = names if layers else names[-1:]
        if spikes.shape[1] == 0:
            shapes = {name: (*spikes.shape[:2], *self.program.shapes[name]) for name in names}
            recorded = {name: np.zeros(shapes[name], np.uint8) for name in wanted}
            us = vs = {name: np.zeros(shapes[name], np.int64) for name in names if states}
        else:
            recorded, us, vs = self._run_lava(spikes, {names.index(name): name for name in wanted}, states)
        output = recorded[names[-1]].reshape(*spikes.shape[:2], *self.program.output_shape)
        return Result(output=output, layers=recorded if layers else {}, u=us, v=vs)

    def _run_lava(
        self, spikes: np.ndarray, record: dict[int, str], states: bool
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]:
        program, samples = self.program, spikes.shape[1]
        with tempfile.TemporaryDirectory(prefix="ashnets-lava-") as name:
            folder = Path(name)
            rows = pack_stream(spikes, extra=len(program.synaptic))
            seconds = self.deadline.seconds(program, len(rows))
            np.save(folder / "input.npy", rows)
            (folder / "network.net").write_bytes(self._net)
            write_json(
                folder / "job.json",
                {
                    "run_cfg": self.run_cfg,
                    "stock": self.stock,
                    "steps": len(rows),
                    "reset_interval": program.steps,
                    "input_shape": for_netx(program).input_shape,
                    "input_bits": program.input_bits,
                    "record": list(record),
                    "seconds": 0.9 * seconds,  # so that the log holds them when we end a hang
                    "states": states,
                },
            )
            run_job(folder, seconds)
            self.seconds = read_json(folder / "seconds.json")

            def samples_of(rows: np.ndarray, i: int, layer: str) -> np.ndarray:
                return cut_stream(rows, i + 1, program.steps, samples, program.shapes[layer])

            recorded = {
                layer: samples_of(unpack_rows(np.load(folder / f"layer{i}.npy"), program.shapes[layer]), i, layer)
                for i, layer in record.items()
            }
            us, vs = {}, {}
            for i, layer in enumerate(program.synaptic if states else ()):
                both = np.load(folder / f"state{i}.npy").astype(np.int64)
                us[layer.name], vs[layer.name] = (samples_of(both[:, k], i, layer.name) for k in (0, 1))
            return recorded, us, vs


class Loihi2Backend(LavaBackend):
    """The same network on a Loihi 2 system (`Loihi2HwCfg`), behind the adapters that Lava has for its input and output.

    It needs lava-loihi, and was never run on a chip by this project: compare with `simulate --verify` first. Spikes
    only. A recurrent or delayed layer is refused: between two samples the chip would keep what is on its way.
    """

    name = "loihi2"
    run_cfg = "Loihi2HwCfg"

    def __init__(self, program: SpikingProgram, *, deadline: Deadline = Deadline()) -> None:
        super().__init__(program, deadline=deadline)
        require_loihi()
        for layer in program.synaptic:
            if isinstance(layer, Recurrent) or (isinstance(layer, Dense) and layer.delay.any()):
                raise RefusedError(
                    f"layer '{layer.name}': is recurrent or delayed, and backend 'loihi2' cannot clear what is on its "
                    "way between two samples; run it on another backend"
                )

    def run(
        self, spikes: np.ndarray, *, layers: bool = False, states: bool = False, state: State | None = None
    ) -> Result:
        if states:
            raise UserError("backend 'loihi2' gives spikes alone; take u and v from 'reference'")
        return super().run(spikes, layers=layers, state=state)


def for_netx(program: SpikingProgram) -> SpikingProgram:
    """The same program without the Flattens that netx cannot place: in front (our side flattens) and of vectors. An
    input layer, for which netx has no port, goes as the convolution that it is held as."""
    shape, layers = program.input_shape, []
    for layer in program.layers:
        if isinstance(layer, Input):
            kept = {item.name: getattr(layer, item.name) for item in fields(Conv)}
            layers.append(Conv(**kept))
        elif not isinstance(layer, Flatten) or (layers and len(shape) > 1):
            layers.append(layer)
        shape = layer.output_shape(shape)
    flat = isinstance(program.layers[0], Flatten)
    input_shape = (prod(program.input_shape),) if flat else program.input_shape
    return replace(program, input_shape=input_shape, layers=tuple(layers))


def pack_stream(spikes: np.ndarray, extra: int) -> np.ndarray:
    """Spikes [T, B, ...] -> rows [B T + extra, ...]: sample after sample, then empty steps. uint8 spikes are packed
    into bits, graded int32 ones stay."""
    steps, samples = spikes.shape[:2]
    rows = spikes.swapaxes(0, 1).reshape(samples * steps, -1)
    return np.pad(np.packbits(rows, axis=1) if rows.dtype == np.uint8 else rows, ((0, extra), (0, 0)))


def unpack_rows(rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Bit-packed rows -> uint8 spikes [rows, neurons]."""
    return np.unpackbits(rows, axis=1, count=prod(shape))


def cut_stream(rows: np.ndarray, lag: int, steps: int, samples: int, shape: tuple[int, ...]) -> np.ndarray:
    """Rows [steps, neurons] of a layer that lags `lag` steps -> [T, B, *shape]."""
    return np.ascontiguousarray(rows[lag : lag + samples * steps].reshape(samples, steps, *shape).swapaxes(0, 1))


def run_job(folder: Path, seconds: float, module: str = "hw.lava.runner") -> None:
    """Run `module` on a job's folder. However this ends, no process and no shared memory is left."""
    log = folder / "log"
    command = [sys.executable, "-m", module, str(folder)]
    with (
        open(log, "wb") as sink,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # closes if we die, and the runner ends
            stdout=subprocess.PIPE,  # open while any process of the run lives
            stderr=sink,
            cwd=folder,
            env=environment(),
            start_new_session=True,
        ) as process,
    ):
        code = None
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise BackendError(
                f"Lava took longer than its deadline of {seconds:.1f} s; pass a larger hw.lava.backend.Deadline, or "
                f"run fewer samples at once. {_tail(log)}"
            ) from error
        finally:
            _end_group(process, asked=code is None)
    if code:
        raise BackendError(f"the Lava run failed (exit code {code}). {_tail(log)}")


def _tail(log: Path) -> str:
    text = log.read_text(encoding="utf-8", errors="replace").strip()
    return f"Its log ends with:\n{text[-LOG_LIMIT:]}" if text else "Its log is empty."


def _end_group(process: subprocess.Popen[bytes], *, asked: bool) -> None:
    """End what is left of the runner's process group.

    SIGTERM comes first: multiprocessing's resource tracker ignores it, and unlinks the shared memory once all others
    are gone.
    """
    if not asked and _all_gone(process, 1.0):
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        if _all_gone(process, GRACE_SECONDS):
            return


def _all_gone(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """True once standard output is closed everywhere. A zombie that nobody reaps does not count, as for signal 0."""
    end = time.monotonic() + seconds
    alive = cast(IO[bytes], process.stdout).fileno()
    while select.select([alive], [], [], max(0.0, end - time.monotonic()))[0]:
        if not os.read(alive, 65536):
            return True
    return False
