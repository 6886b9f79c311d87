"""A folder of each official format."""

from pathlib import Path

import pytest

from tests.train.official import MAKERS
from train.data.formats import FORMATS


@pytest.fixture(params=sorted(FORMATS))
def made(request, tmp_path, monkeypatch) -> tuple[str, Path]:
    monkeypatch.setenv("ASHNETS_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "data"
    root.mkdir()
    MAKERS[request.param](root)
    return request.param, root
