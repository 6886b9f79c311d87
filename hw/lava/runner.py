"""The process that holds Lava: `python -m hw.lava.runner FOLDER` runs one job and ends.

FOLDER holds `network.net`, `job.json` and `input.npy`, and gets one `layer<i>.npy` for each recorded layer. Both kinds
of `.npy` are bit-packed spikes: row t is `np.packbits` of one step, in the program's (C, H, W) order. Graded input is
int32, unpacked. `seconds.json` tells what starting and the other steps took. With "states", `state<i>.npy` of each
layer holds rows int32 [2, neurons], u and v.

    job.json: {"run_cfg": "Loihi2SimCfg" or "Loihi2HwCfg", "steps": rows to run, "reset_interval": T,
               "input_shape": [C, H, W] or [N], "input_bits": 0 or more, "record": [layer, ...],
               "seconds": after which every process of the job tells on standard error where it is,
               "states": true or false, "stock": true for Lava without our mends}

Standard input is a lifeline. When it closes, the parent is gone: the runner removes FOLDER, which is the job's own, and
ends with all its children.
"""

import faulthandler
import importlib
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from hw.artifact import read_json, write_json
from hw.lava.compat import import_netx
from hw.lava.models import START, STATE_FILE, make_models
from hw.lava.ports import make_ports

CHANNEL_SLOTS = 4  # messages that a Lava channel holds; its default of 64 fills /dev/shm with wide layers


def build(lava: SimpleNamespace, folder: Path, job: dict[str, Any]) -> tuple[Any, Any]:
    """netx's network between our source and sinks -> (the process to run, its run configuration)."""
    ports = make_ports(lava)
    net = lava.hdf5.Network(
        net_config=str(folder / "network.net"),
        input_shape=tuple(reversed(job["input_shape"])),
        reset_interval=job["reset_interval"],
        reset_offset=1,
        input_message_bits=job["input_bits"],
    )
    net.net_config.f.close()  # netx leaves its file open

    source = ports.source(shape=net.inp.shape, path=str(folder / "input.npy"))
    on_chip = job["run_cfg"] == "Loihi2HwCfg"
    adapters = importlib.import_module("lava.proc.embedded_io.spike") if on_chip else None
    models: dict[Any, type] = {source: ports.source_model}
    if adapters:
        into = adapters.PyToNxAdapter(shape=net.inp.shape, num_message_bits=job["input_bits"])
        source.out.connect(into.inp)
        into.out.connect(net.inp)
    else:
        source.out.connect(net.inp)
        # Naming each model skips Lava's search, which imports every neighbour of a process's module, torch included.
        models |= {net: lava.hdf5.PyNetworkModel, **_layer_models(lava, net, folder, job)}
    for index in job["record"]:
        layer = net.layers[index]
        path = folder / f"layer{index}.npy"
        np.save(path, np.zeros((job["steps"], -(-int(np.prod(layer.shape)) // 8)), np.uint8))
        sink = ports.sink(shape=layer.shape, path=str(path))
        out = layer.out
        if adapters:
            out_of = adapters.NxToPyAdapter(shape=layer.shape, num_message_bits=0)
            out.connect(out_of.inp)
            out = out_of.out
        out.connect(sink.inp)
        models[sink] = ports.sink_model
    config = getattr(lava.run_configs, job["run_cfg"])
    return source, config(select_tag=None if on_chip else "fixed_pt", exception_proc_model_map=models)


def _layer_models(lava: SimpleNamespace, net: Any, folder: Path, job: dict[str, Any]) -> dict[Any, type]:
    ours, models = make_models(lava), {}
    for i, block in enumerate(net.layers):
        conv = isinstance(block, lava.hdf5.Conv)
        delayed = hasattr(block.synapse, "delays")
        models[block] = lava.blocks.PyConvModel if conv else lava.blocks.PyDenseModel
        models[block.synapse] = lava.conv.PyConvModelFixed if conv else lava.dense.PyDenseModelBitAcc
        models[block.neuron] = lava.lif.PyLifResetModelBitAcc
        # Steps count from 1 and a layer is one behind its input, so that its sample starts at step i + 2 - 1.
        if delayed:
            models[block.synapse] = ours.delayed
            block.synapse.proc_params[START] = (job["reset_interval"], i + 1)
        if hasattr(block, "synapse_rec"):
            models[block.synapse_rec] = ours.recurrent
            block.synapse_rec.proc_params[START] = (job["reset_interval"], i + 2)
        if job["states"]:
            models[block.neuron] = ours.neuron
            path = folder / f"state{i}.npy"
            np.save(path, np.zeros((job["steps"], 2, int(np.prod(block.shape))), np.int32))
            block.neuron.proc_params[STATE_FILE] = str(path)
    return models


class Watch(threading.Thread):
    """Ends everything when the parent goes or a worker ends while `running`: the others would wait for ever."""

    def __init__(self, folder: Path, workers: list[multiprocessing.Process]) -> None:
        super().__init__(daemon=True)
        self.folder = folder
        self.workers = {worker.sentinel: worker for worker in workers}
        self.running = True

    def run(self) -> None:
        lifeline = sys.stdin.fileno()
        while True:
            ready = wait([lifeline, *(self.workers if self.running else ())], timeout=0.1)
            if lifeline in ready and not os.read(lifeline, 4096):
                shutil.rmtree(self.folder, ignore_errors=True)
                _end()
            dead = [worker for sentinel, worker in self.workers.items() if sentinel in ready]
            if dead and self.running:
                # Lava answers a crash by stopping the other workers; let the crashed one write its traceback.
                time.sleep(1)
                codes = ", ".join(f"{worker.name} with exit code {worker.exitcode}" for worker in dead)
                print(f"Lava workers ended before the run was over: {codes}", file=sys.stderr, flush=True)
                _end()


def tell_where_after(seconds: float) -> None:
    """Have this process write its stack to standard error then, and each that it forks a moment later than the last."""
    due = time.monotonic() + seconds

    def arm() -> None:  # a fork takes the handler along, not the timer
        signal.setitimer(signal.ITIMER_REAL, max(0.1, due - time.monotonic()))

    def postpone() -> None:
        nonlocal due
        due += 0.05

    faulthandler.register(signal.SIGALRM, all_threads=False)
    arm()
    os.register_at_fork(before=postpone, after_in_child=arm)


def _end() -> None:
    for child in multiprocessing.active_children():
        child.terminate()
    os._exit(1)


def main(folder: Path) -> None:
    sys.stdout = sys.stderr  # Lava prints; the parent reads the log and takes standard output as a sign of life
    begin = time.perf_counter()
    job = read_json(folder / "job.json")
    tell_where_after(job["seconds"])
    lava = import_netx(stock=job["stock"])
    process, config = build(lava, folder, job)
    process.create_runtime(run_cfg=config, compile_config={"pypy_channel_size": CHANNEL_SLOTS})
    # After the forks, since a thread and a fork do not mix. Lava offers no public way to its workers.
    watch = Watch(folder, process.runtime._messaging_infrastructure.actors)
    watch.start()
    process.run(lava.run_conditions.RunSteps(num_steps=1))  # starts the processes
    started = time.perf_counter()
    if job["steps"] > 1:
        process.run(lava.run_conditions.RunSteps(num_steps=job["steps"] - 1))
    seconds = {"start": started - begin, "steps": time.perf_counter() - started}
    write_json(folder / "seconds.json", seconds)
    watch.running = False
    process.stop()


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except Exception:
        traceback.print_exc()
        _end()  # a plain exit would join Lava's workers, which may wait for ever
