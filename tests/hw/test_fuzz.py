"""Mutated files: refused in one line or loaded as a valid program, and never a crash or a hang."""

import select
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HANG_SECONDS = 5


def fuzz(kind: str, count: int, folder: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "tests.hw.fuzz_files", kind, str(count), str(folder)]
    verdicts, last, wait = {"refused": 0, "loaded": 0}, "", 60.0
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            while True:
                assert select.select([process.stdout], [], [], wait)[0], f"hangs in case {last!r}"
                line, wait = process.stdout.readline(), HANG_SECONDS
                if not line:
                    break
                last = line
                verdict = line.split(maxsplit=1)[1].strip()
                assert verdict in verdicts, line
                verdicts[verdict] += 1
            assert process.wait() == 0, f"{last}\n{process.stderr.read()}"
        finally:
            process.kill()
    assert sum(verdicts.values()) == count
    assert verdicts["refused"] > 0.5 * count


EXPORTS = ["qcdq", "qcdq-scan", "qonnx", "nir", "manifest"]


@pytest.mark.parametrize("kind", ["net", "json", "weights", *EXPORTS])
def test_mutated_files_are_refused_in_one_line_or_hold_a_valid_program(kind, tmp_path):
    fuzz(kind, 100 if kind in EXPORTS else 500, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", ["net", "json", "weights", *EXPORTS])
def test_many_mutated_files_are_refused_in_one_line_or_hold_a_valid_program(kind, tmp_path):
    fuzz(kind, 500 if kind in EXPORTS else 10_000, tmp_path)
