"""The benchmarks compare before they time, and say what they timed."""

import json
from dataclasses import replace

import numpy as np
import pytest

import hw.bench
from ashnets.cli import main
from hw import BackendError, Dense, SpikingProgram
from hw.bench import Case, cache_bandwidth, dense_program, least_bytes, measure
from hw.bench_growth import SWEEPS, growth
from hw.program_file import save_program
from hw.simulate import open_backend
from tests.hw.test_lava import PROGRAMS
from train.report.bench import write_bench_page

SMALL = Case(name="small", program=dense_program((6, 5, 4), 3), batch=2, density=0.5)


class Wrong:
    """A simulator that flips one spike."""

    def __init__(self, program: SpikingProgram) -> None:
        self.inner = open_backend("reference", program)

    def run(self, spikes, **options):
        result = self.inner.run(spikes, **options)
        output = result.output.copy()
        output.flat[-1] ^= 1
        return replace(result, output=output)


@pytest.fixture
def wrong(monkeypatch):
    real = open_backend
    for module in (hw.bench, hw.bench_growth):
        monkeypatch.setattr(module, "open_backend", lambda name, p: Wrong(p) if name == "batched" else real(name, p))


def test_a_row_and_its_page(tmp_path):
    row = measure(SMALL, seconds=0.01)
    assert {f"{name}_times_lava" for name in hw.bench.SIMULATORS} < row.keys()
    assert row["events_times_lava"] == pytest.approx(row["lava_us"] / row["events_us"])
    assert 0 < row["events_share_of_limit"] < 1
    sweeps = [replace(sweep, values=sweep.values[:2]) for sweep in SWEEPS]
    grown = growth(sweeps, seconds=0.001)
    assert [len(found.us["events"]) for found in grown] == [2] * len(SWEEPS)
    write_bench_page([row], grown, tmp_path / "bench.html")
    page = (tmp_path / "bench.html").read_text()
    assert page.count("<svg") >= len(SWEEPS)
    for text in ("small", "neurons", "synapses", "density", "batch"):
        assert text in page


@pytest.mark.usefixtures("wrong")
def test_what_differs_is_not_timed():
    with pytest.raises(BackendError, match="small: 1 spikes of 'batched' differ from Lava's"):
        measure(SMALL, seconds=0.01)
    with pytest.raises(BackendError, match="spikes of 'batched' differ from those of"):
        growth(SWEEPS[:1], seconds=0.001)


def test_the_limit_counts_what_must_move():
    """3 inputs, all spiking at both steps, to 2 neurons over 5 nonzero weights."""
    layer = Dense(name="fc", weight_int=[[1, 2, 3], [4, 5, 0]], decay_u_int=1, decay_v_int=1, v_th_mant=100)
    program = SpikingProgram(input_shape=(3,), steps=2, layers=(layer,))
    assert least_bytes(program, np.ones((2, 1, 3), np.uint8)) == 10 * 2 * 5 + 21 * 2 * 2 + 2 * 3
    assert cache_bandwidth(1) > 1e9


def test_both_ways_through_lava_give_the_same_and_the_command_says_what_is_missing(tmp_path, capsys):
    assert main(["bench", "lava"]) == 2
    assert "bench lava needs --program" in capsys.readouterr().err
    save_program(PROGRAMS["conv_flatten_dense"], tmp_path / "program")  # with biases
    command = ["bench", "lava", "--program", str(tmp_path / "program")]
    assert main([*command, "--samples", "0"]) == 2
    assert "run at least 1 sample" in capsys.readouterr().err
    assert main([*command, "--samples", "2", "--json"]) == 0
    row = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert row["samples"] == 2
    assert row["output_rate"] > 0
    assert row["times_faster"] == pytest.approx(row["network_per_sample_seconds"] / row["streamed_seconds"])
