import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from train.data import cache_folder
from train.data.cache import CacheError, cached_images


class Drawer:
    """Draws small images and counts them."""

    def __init__(self, shift: int = 0) -> None:
        self.drawn, self.shift = 0, shift

    def __call__(self, i: int) -> np.ndarray:
        self.drawn += 1
        return np.full((2, 2, 3), i + self.shift, np.uint8)


def get(folder: Path, draw=None, count: int = 4, version: str = "1", **more) -> np.ndarray:
    return cached_images(
        name="tiny", key={"package": version}, count=count, image_size=2, draw=draw or Drawer(), folder=folder, **more
    )


def npy(folder: Path) -> Path:
    (path,) = folder.glob("*.npy")
    return path


def test_images_are_drawn_once_and_then_mapped_read_only(tmp_path, caplog):
    first, second = Drawer(), Drawer(shift=100)
    made, found = get(tmp_path, first), get(tmp_path, second)
    assert (first.drawn, second.drawn) == (4, 0)
    assert isinstance(found, np.memmap)
    assert not found.flags.writeable
    assert found.shape == (4, 2, 2, 3)
    assert found[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert np.array_equal(made, found)
    assert caplog.records == []


def test_another_package_version_or_count_is_another_entry(tmp_path):
    get(tmp_path)
    for change in ({"version": "2"}, {"count": 3}):
        drawer = Drawer()
        get(tmp_path, drawer, **change)
        assert drawer.drawn > 0
    assert len(list(tmp_path.glob("*.npy"))) == 3


def test_the_entry_is_a_plain_npy_file_with_its_hash_beside_it(tmp_path):
    import hashlib

    get(tmp_path)
    record = json.loads(npy(tmp_path).with_suffix(".json").read_text())
    raw = npy(tmp_path).read_bytes()
    assert record["sha256"] == hashlib.sha256(raw).hexdigest()
    assert record["bytes"] == len(raw)
    assert np.load(npy(tmp_path), allow_pickle=False).dtype == np.uint8
    assert len(list(tmp_path.iterdir())) == 2


def flip_last_byte(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))


@pytest.mark.parametrize(
    "damage",
    [
        flip_last_byte,
        lambda path: path.write_bytes(path.read_bytes()[:-5]),
        lambda path: path.write_bytes(b""),
        lambda path: path.with_suffix(".json").unlink(),
        lambda path: path.with_suffix(".json").write_text("{"),
        lambda path: path.with_suffix(".json").write_text("[]"),
        lambda path: path.with_suffix(".json").write_text("{}"),
    ],
    ids=["flipped bit", "truncated", "empty", "no sidecar", "broken sidecar", "list as sidecar", "empty sidecar"],
)
def test_a_corrupt_entry_is_rebuilt_with_one_line_in_the_log(tmp_path, caplog, damage):
    get(tmp_path)
    damage(npy(tmp_path))
    drawer = Drawer()
    with caplog.at_level(logging.WARNING):
        pixels = get(tmp_path, drawer)
    assert drawer.drawn == 4
    assert pixels[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    (record,) = caplog.records
    assert "rebuilding the cached images" in record.message
    assert "\n" not in record.message
    again = Drawer()
    get(tmp_path, again)
    assert again.drawn == 0


def test_a_run_killed_while_it_draws_leaves_no_entry(tmp_path):
    """A real process that dies without any clean-up, after three of four images."""
    script = """
import os, sys
from pathlib import Path
import numpy as np
from train.data.cache import cached_images
def draw(i):
    if i == 3:
        os._exit(9)
    return np.zeros((2, 2, 3), np.uint8)
cached_images(name="tiny", key={"package": "1"}, count=4, image_size=2, draw=draw, folder=Path(sys.argv[1]))
"""
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=environment, check=False)
    assert done.returncode == 9
    assert list(tmp_path.glob("*.npy")) == []
    drawer = Drawer()
    assert get(tmp_path, drawer)[3, 0, 0, 0] == 3
    assert drawer.drawn == 4


@pytest.mark.parametrize("survivors", [0, 1], ids=["before the first rename", "between pixels and sidecar"])
def test_a_run_killed_before_a_rename_leaves_what_was_there(tmp_path, monkeypatch, survivors):
    """The old entry survives until the new one is whole; pixels without their sidecar do not count."""
    get(tmp_path)
    flip_last_byte(npy(tmp_path))
    before = npy(tmp_path).read_bytes()
    replace, calls = os.replace, []

    def killed(source, target):
        if len(calls) == survivors:
            raise KeyboardInterrupt
        calls.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        get(tmp_path, Drawer(shift=7))
    if survivors == 0:
        assert npy(tmp_path).read_bytes() == before
    monkeypatch.undo()
    assert list(tmp_path.glob(".*.tmp")) == [], "an interrupted write must not leave its temporary file"
    drawer = Drawer(shift=7)
    assert get(tmp_path, drawer)[0, 0, 0, 0] == 7
    assert drawer.drawn == 4


def test_pixels_reach_the_disk_before_their_name_does(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (events.append("fsync"), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append(Path(b).suffix), replace(a, b)))
    get(tmp_path)
    assert events == ["fsync", ".npy", "fsync", "fsync", ".json", "fsync"]


def test_a_folder_that_cannot_be_written_is_named_with_the_way_out(tmp_path):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "cache"
    with pytest.raises(CacheError) as caught:
        get(folder)
    message = str(caught.value)
    assert str(folder) in message
    assert "set ASHNETS_CACHE to a folder that you can write" in message
    assert "\n" not in message


def test_a_full_disk_is_reported_and_cleaned_up(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CacheError, match="No space left on device"):
        get(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_drawing_of_the_wrong_shape_is_refused_and_never_stored(tmp_path):
    with pytest.raises(ValueError, match=r"image 0 is uint8 \(3, 3, 3\), expected uint8 \(2, 2, 3\)"):
        get(tmp_path, lambda i: np.zeros((3, 3, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_to_the_end_and_is_silent_when_nothing_is_drawn(tmp_path):
    seen = []
    get(tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    get(tmp_path, progress=lambda done, total: pytest.fail("nothing was drawn"))


def test_the_folder_is_the_users_own_choice_then_xdg_then_home(monkeypatch, tmp_path):
    monkeypatch.setenv("ASHNETS_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "own"
    get(None)
    assert npy(tmp_path / "own").exists()
    monkeypatch.delenv("ASHNETS_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "ashnets"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "ashnets"
