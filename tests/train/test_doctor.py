"""What `ashnets doctor` looks at."""

import re
import sys
import tomllib
from pathlib import Path

import pytest

from hw.errors import UserError
from hw.simulate import open_backend
from tests.hw.test_lava import PROGRAMS
from train import doctor

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def test_every_package_that_the_project_needs_is_looked_for():
    needed = tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"]
    names = [re.split("[<>=~]", requirement)[0] for requirement in needed]
    assert sorted(names) == sorted((*doctor.PACKAGES, *doctor.DATA_PACKAGES))


def test_a_cache_that_is_a_file_is_told(tmp_path, monkeypatch):
    (tmp_path / "cache").touch()
    monkeypatch.setenv("ASHNETS_CACHE", str(tmp_path / "cache"))
    assert (False, f"the cache folder {tmp_path / 'cache'} cannot be written; set ASHNETS_CACHE to one that can") in [
        line for line in doctor.examine() if "cache" in line[1]
    ]


@pytest.mark.parametrize(("name", "missing"), [("onnx-step", "onnxruntime"), ("tcp://127.0.0.1:9", "zmq")])
def test_a_backend_without_its_package_is_one_line(name, missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, "hw.bridge.remote", raising=False)
    with pytest.raises(UserError, match=f"needs the package '{missing}', which is not installed"):
        open_backend(name, PROGRAMS["dense_only"])
