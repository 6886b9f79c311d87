"""Checkpoints are there whole or not at all, whatever happens while one is written."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = str(Path(__file__).with_name("saves.py"))
HOW = pytest.mark.parametrize("how", ["at once", "beside"])


def found(what: str, folder: Path, how: str, times: int) -> dict:
    """What `saves` tells."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-W", "ignore", PROGRAM, what, str(folder), how.replace(" ", ""), str(times)]
    ended = subprocess.run(arguments, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(ended.stdout)


@HOW
def test_kill_minus_nine_200_times_while_saving_loses_nothing_and_corrupts_nothing(how, tmp_path):
    told = found("kills", tmp_path, how, 200)
    assert told["saved"] > 200
    assert told["lost"] == told["corrupt"] == told["leftovers"] == 0
    assert told["oldest"] <= 1


def assert_refused(told: dict, reason: str) -> None:
    assert told["intact"] == len(told["told"]) == 20
    assert told["leftovers"] == 0
    assert told["after"] == 2
    for line in told["told"]:
        assert "step-00000002" in line
        assert reason in line
        assert "is whole" in line or "permissions" in line
        assert "\n" not in line


@HOW
def test_a_file_that_may_not_grow_20_times_leaves_the_checkpoint_before_it(how, tmp_path):
    assert_refused(found("limited", tmp_path, how, 20), "File too large")


@HOW
def test_a_folder_that_may_not_be_written_20_times_leaves_the_checkpoint_before_it(how):
    # Not in pytest's folder, which is closed to other users.
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    try:
        assert_refused(found("locked", folder, how, 20), "Permission denied")
    finally:
        shutil.rmtree(folder)


@HOW
def test_a_full_disk_20_times_leaves_the_checkpoint_before_it(how, tmp_path):
    disk = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    if subprocess.run(disk, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system; the test of files that may not grow needs none")
    try:
        assert_refused(found("full", tmp_path, how, 20), "No space left on device")
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
