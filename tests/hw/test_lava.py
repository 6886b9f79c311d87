"""Lava: spikes as in the reference, failures that reach the user, nothing left behind, mends that are still needed."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

import hw.lava.backend
from hw import BackendError, Conv, Dense, Flatten, SpikingProgram, UserError
from hw.lava.backend import Deadline, LavaBackend
from hw.lava.compat import MENDS, Mend, environment, import_netx, mends
from hw.simulate import Result, open_backend

needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes through /proc")


def conv(name: str, shape: tuple[int, ...], seed: int, **geometry: object) -> Conv:
    rng = np.random.default_rng(seed)
    return Conv(
        name=name,
        weight_int=rng.integers(-60, 61, shape),
        bias_mant=rng.integers(-300, 300, shape[0]),
        decay_u_int=1200,
        decay_v_int=300,
        v_th_mant=150,
        **geometry,
    )


def dense(name: str, shape: tuple[int, int], seed: int) -> Dense:
    rng = np.random.default_rng(seed)
    bias = rng.integers(-300, 300, shape[0])
    weight = rng.integers(-127, 128, shape)
    return Dense(name=name, weight_int=weight, bias_mant=bias, decay_u_int=900, decay_v_int=200, v_th_mant=200)


CONV_FLATTEN_DENSE = SpikingProgram(
    input_shape=(2, 7, 6),
    steps=5,
    layers=(
        conv("conv1", (4, 2, 3, 2), 1, stride=(2, 1), padding=(1, 2)),
        conv("conv2", (6, 2, 2, 3), 2, dilation=(2, 1), groups=2),
        Flatten(),
        dense("fc1", (9, 6 * 2 * 7), 3),
        Flatten(name="flat_already"),
        dense("fc2", (4, 9), 4),
    ),
)
PROGRAMS = {
    "conv_flatten_dense": CONV_FLATTEN_DENSE,
    "dense_only": SpikingProgram(
        input_shape=(3, 2, 2), steps=4, layers=(Flatten(), dense("fc1", (8, 12), 5), dense("fc2", (5, 8), 6))
    ),
    "conv_only": SpikingProgram(
        # 130 groups: Lava's int8 cannot count them.
        input_shape=(130, 3, 4),
        steps=1,
        layers=(conv("depthwise", (130, 1, 2, 3), 7, groups=130), Flatten()),
    ),
}


def random_spikes(program: SpikingProgram, samples: int) -> np.ndarray:
    rng = np.random.default_rng(samples)
    return (rng.random((program.steps, samples, *program.input_shape)) < 0.4).astype(np.uint8)


@pytest.fixture(scope="module", params=PROGRAMS)
def both(request: pytest.FixtureRequest) -> tuple[Result, Result]:
    """(reference, lava) of four samples, all layers."""
    program = PROGRAMS[request.param]
    spikes = random_spikes(program, 4)
    return tuple(open_backend(name, program).run(spikes, layers=True) for name in ("reference", "lava"))


def test_lava_matches_reference_spike_for_spike_in_every_layer(both: tuple[Result, Result]) -> None:
    reference, lava = both
    assert list(lava.layers) == list(reference.layers)
    for name, spikes in reference.layers.items():
        assert 0 < spikes.mean() < 1, f"layer {name} proves nothing"
        np.testing.assert_array_equal(lava.layers[name], spikes, err_msg=name)


def test_lava_gives_the_output_in_the_programs_shape_and_type(both: tuple[Result, Result]) -> None:
    reference, lava = both
    assert lava.output.dtype == np.uint8
    np.testing.assert_array_equal(lava.output, reference.output)


@pytest.fixture
def footprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["Footprint"]:
    """What runs started in this test leave: their processes, shared memory and temporary files."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    mark = uuid.uuid4().hex
    monkeypatch.setenv("LAVA_TEST_MARK", mark)
    watcher = Footprint(mark, tmp_path)
    watcher.start()
    yield watcher
    watcher.stop.set()
    watcher.join()


class Footprint(threading.Thread):
    """Samples the processes that carry `mark` in their environment, and the shared memory that they map."""

    def __init__(self, mark: str, temporary: Path) -> None:
        super().__init__()
        self.mark, self.temporary = f"LAVA_TEST_MARK={mark}".encode(), temporary
        self.stop = threading.Event()
        self.shared: set[Path] = set()

    def processes(self) -> dict[int, set[Path]]:
        """Living processes with the mark, other than this one -> segments of shared memory that each maps."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if int(folder.name) != os.getpid() and self.mark in (folder / "environ").read_bytes():
                    lines = (folder / "maps").read_text().splitlines()
                    names = (line.split(maxsplit=5)[-1] for line in lines if "/dev/shm/psm_" in line)
                    found[int(folder.name)] = {Path(name.removesuffix(" (deleted)")) for name in names}
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue  # it ended while we looked
        return found

    def run(self) -> None:
        while not self.stop.wait(0.02):
            for shared in self.processes().values():
                self.shared |= shared

    def wait_for(self, what: Callable[[], object], seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end, "it did not happen in time"
            time.sleep(0.02)

    def workers(self) -> list[int]:
        """Lava's workers, once all of them map their channels."""
        mapped = [pid for pid, shared in self.processes().items() if len(shared) >= 2]
        return sorted(mapped)[1:] if len(mapped) > 6 else []

    def assert_gone(self) -> None:
        assert self.shared, "no shared memory was seen: the run did not get as far as its workers"
        assert self.processes() == {}
        assert [path for path in self.shared if path.exists()] == []
        assert list(self.temporary.glob("ashnets-lava-*")) == []


@needs_proc
def test_nothing_is_left_after_a_success(footprint: Footprint) -> None:
    result = open_backend("lava", CONV_FLATTEN_DENSE).run(random_spikes(CONV_FLATTEN_DENSE, 1))
    assert result.layers == {}
    footprint.assert_gone()


@needs_proc
def test_a_crash_inside_a_lava_model_reaches_the_user_with_its_traceback_and_leaves_nothing(
    footprint: Footprint, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json = hw.lava.backend.write_json

    def one_step_too_many(path: Path, job: dict[str, object]) -> None:
        write_json(path, job | {"steps": job["steps"] + 1})

    monkeypatch.setattr(hw.lava.backend, "write_json", one_step_too_many)
    with pytest.raises(BackendError) as error:
        open_backend("lava", CONV_FLATTEN_DENSE).run(random_spikes(CONV_FLATTEN_DENSE, 1))
    for part in (
        "exit code 1",
        "Traceback (most recent call last)",
        "in run_spk",
        "IndexError: index 9 is out of bounds",
    ):
        assert part in str(error.value)
    footprint.assert_gone()


@needs_proc
def test_a_run_beyond_its_deadline_is_ended_and_leaves_nothing(footprint: Footprint) -> None:
    backend = LavaBackend(CONV_FLATTEN_DENSE, deadline=Deadline(start=25, step=0, pair=0))
    with pytest.raises(BackendError, match=r"longer than its deadline of 25\.0 s; pass a larger") as error:
        backend.run(random_spikes(CONV_FLATTEN_DENSE, 60_000))
    told = str(error.value)  # where the process in front and the workers are
    assert "in main" in told
    assert "in run_spk" in told
    assert told.count("in target_fn") > 5
    footprint.assert_gone()


@needs_proc
def test_a_worker_that_is_killed_ends_the_run_with_its_exit_code_and_leaves_nothing(footprint: Footprint) -> None:
    with ThreadPoolExecutor() as pool:
        spikes = random_spikes(CONV_FLATTEN_DENSE, 20_000)
        run = pool.submit(open_backend("lava", CONV_FLATTEN_DENSE).run, spikes)
        footprint.wait_for(footprint.workers)
        time.sleep(1)  # let the start be over
        os.kill(footprint.workers()[-1], signal.SIGKILL)
        with pytest.raises(BackendError, match=r"workers ended before the run was over: .* with exit code -9"):
            run.result(timeout=30)
    footprint.assert_gone()


LONG_RUN = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
import numpy as np
from hw import Dense, SpikingProgram
from hw.simulate import open_backend
layers = tuple(
    Dense(name=name, weight_int=np.ones((2, 2), int), decay_u_int=1, decay_v_int=1, v_th_mant=1) for name in "abcd"
)
open_backend("lava", SpikingProgram(input_shape=(2,), steps=4, layers=layers)).run(np.ones((4, 100_000, 2), np.uint8))
"""


@needs_proc
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_nothing_is_left_when_our_own_process_is_ended(footprint: Footprint, number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", LONG_RUN], env=environment(), stderr=subprocess.DEVNULL) as process:
        footprint.wait_for(footprint.workers)
        process.send_signal(number)
        assert process.wait(20) != 0
    footprint.wait_for(lambda: not footprint.processes(), 20)
    footprint.assert_gone()


def test_an_empty_batch_gives_an_empty_result_without_lava(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(hw.lava.backend, "run_job")
    result = open_backend("lava", CONV_FLATTEN_DENSE).run(random_spikes(CONV_FLATTEN_DENSE, 0), layers=True)
    assert result.output.shape == (5, 0, 4)
    assert {name: spikes.shape for name, spikes in result.layers.items()} == {
        name: (5, 0, *CONV_FLATTEN_DENSE.shapes[name]) for name in ("conv1", "conv2", "fc1", "fc2")
    }


def test_a_program_that_netx_would_not_hold_is_refused_when_the_backend_is_made() -> None:
    layers = CONV_FLATTEN_DENSE.layers
    for changes, match in (({"weight_exp": 1}, "weight_exp"), ({"v_th_mant": np.array(-1)}, "v_th_mant")):
        bad = replace(CONV_FLATTEN_DENSE, layers=(*layers[:-1], replace(layers[-1], **changes)))
        with pytest.raises(UserError, match=rf"'fc2': {match}"):
            open_backend("lava", bad)


def test_input_of_a_wrong_shape_is_refused_before_any_process_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(hw.lava.backend, "run_job")
    with pytest.raises(UserError, match="the program takes"):
        open_backend("lava", CONV_FLATTEN_DENSE).run(np.zeros((4, 1, 2, 7, 6), np.uint8))


def test_a_missing_lava_is_one_line_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(package: str) -> str:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "version", absent)
    with pytest.raises(UserError, match=r"needs lava-nc, which is not installed; run `uv pip install") as error:
        open_backend("lava", CONV_FLATTEN_DENSE)
    assert "\n" not in str(error.value)


def test_the_deadline_grows_with_steps_and_channel_pairs() -> None:
    deadline = Deadline(start=10, step=1, pair=0.5)
    assert deadline.seconds(PROGRAMS["dense_only"], 7) == 10 + 7
    assert deadline.seconds(PROGRAMS["conv_only"], 2) == 10 + 2 * (1 + 0.5 * 130)


def test_all_mends_together_work() -> None:
    setup, probe = ("\n".join(getattr(mend, key) for mend in MENDS) for key in ("setup", "probe"))
    assert Mend(name="all", why="", setup=setup, probe=probe).works()


def test_each_mend_is_still_needed_and_says_why() -> None:
    report = mends()
    assert [name for name, why, needed in report if not (why and needed)] == []
    assert [name for name, _, _ in report] == [mend.name for mend in MENDS]


def test_the_models_named_by_the_runner_are_those_that_lavas_own_configuration_selects() -> None:
    lava = import_netx()
    config = lava.run_configs.Loihi2SimCfg(select_tag="fixed_pt")
    for module, chosen in (
        (lava.conv, "PyConvModelFixed"),
        (lava.dense, "PyDenseModelBitAcc"),
        (lava.lif, "PyLifResetModelBitAcc"),
    ):
        process = getattr(module, chosen).implements_process
        models = [
            model
            for model in vars(module).values()
            if isinstance(model, type) and getattr(model, "implements_process", None) is process
        ]
        assert len(models) > 1
        assert config.select(None, models) is getattr(module, chosen)
