"""Damaged annotations and pictures: read right, or refused in one line."""

import json
from pathlib import Path

import numpy as np
import pytest

from hw.errors import UserError
from tests.train.official import MAKERS
from train.data.formats import FORMATS, open_folder


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ASHNETS_CACHE", str(tmp_path / "cache"))


def mutated(value, rng):
    """A JSON value with one part of it taken out, doubled, or made into something else."""
    odd = (None, True, -1, 10**30, 1e300, "", " \n", "x" * 300, [], {}, ["a"], {"a": 1}, "\0", "../..", "\ud800")
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = list(value)[rng.integers(len(value))]
        what = rng.integers(3)
        if what == 0:
            return {k: v for k, v in value.items() if k != key}
        return value | {key: odd[rng.integers(len(odd))] if what == 1 else mutated(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        k, what = rng.integers(len(value)), rng.integers(4)
        if what == 0:
            return value[:k] + value[k + 1 :]
        if what == 1:
            return [*value, value[k]]
        return [*value[:k], mutated(value[k], rng), *value[k + 1 :]]
    return odd[rng.integers(len(odd))]


def scrambled(content: bytes, rng) -> bytes:
    """Some bytes of a file changed, taken out or put in."""
    made = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        k = int(rng.integers(len(made)))
        made[k : k + int(rng.integers(0, 3))] = rng.bytes(int(rng.integers(0, 3)))
    return bytes(made)


def survives(name: str, root: Path, times: int, seed: int = 0) -> None:
    """Read right, or refused in one line that names the folder, whatever happens to the files."""
    MAKERS[name](root)
    rng = np.random.default_rng(seed)
    files = [p for p in sorted(root.rglob("*")) if p.suffix in (".json", ".jsonl", ".token", ".csv", ".txt", ".tar")]
    for _ in range(times if files else 0):
        path = files[rng.integers(len(files))]
        whole = path.read_bytes()
        if path.suffix == ".json" and whole[:1] in b"[{" and b"}\n{" not in whole and rng.random() < 0.7:
            path.write_text(json.dumps(mutated(json.loads(whole), rng)))
        elif path.suffix in (".jsonl", ".json") and b"}\n{" in whole and rng.random() < 0.7:
            rows = mutated([json.loads(line) for line in whole.splitlines()], rng)
            path.write_text("".join(f"{json.dumps(row)}\n" for row in rows) if isinstance(rows, list) else "")
        else:
            path.write_bytes(scrambled(whole, rng))
        for split in ("train", "val", "test"):
            try:
                data, problems = open_folder(name, root, split, 8)
                said = [str(problem) for problem in problems]
                for i in range(len(data)):
                    assert data.texts(i)
                    data.image(i)
            except UserError as error:
                said = [str(error)]
            assert all("\n" not in line and str(root) in line for line in said), said
        path.write_bytes(whole)


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_damaged_files_are_read_right_or_refused_in_one_line(name, tmp_path):
    (tmp_path / "data").mkdir()
    survives(name, tmp_path / "data", 20)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FORMATS))
def test_many_damaged_files_are_read_right_or_refused_in_one_line(name, tmp_path):
    (tmp_path / "data").mkdir()
    survives(name, tmp_path / "data", 500, seed=1)
