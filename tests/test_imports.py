"""Who may import whom, and what a light import must not bring along."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "ashnets": {"ashnets", "hw.spellings"},  # of texts: a bundle's tokens are the model's by one definition
    "hw": {"hw"},
    "quantize": {"quantize", "ashnets", "hw"},
    "train": {"train", "quantize", "ashnets", "hw"},
}
ROOF = ROOT / "ashnets" / "cli"


def imported(path: Path) -> set[str]:
    """Top-level names of all that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("package", ALLOWED)
def test_arrows_between_packages_point_one_way(package):
    files = [path for path in (ROOT / package).rglob("*.py") if ROOF not in path.parents]
    assert files
    for path in files:
        ours = {name for name in imported(path) if name.partition(".")[0] in ALLOWED}
        odd = {name for name in ours if not {name, name.partition(".")[0]} & ALLOWED[package]}
        assert not odd, f"{path.relative_to(ROOT)} imports {odd}"


def test_nothing_imports_the_roof():
    for package in ALLOWED:
        for path in (ROOT / package).rglob("*.py"):
            roof = any(name.startswith("ashnets.cli") for name in imported(path))
            assert ROOF in path.parents or not roof, path


def modules_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_the_chip_side_needs_no_torch():
    loaded = modules_after(
        "import hw, hw.simulate.reference, hw.program_file, hw.netx_file, hw.bridge.codec, hw.lava.backend"
    )
    assert not loaded & {"torch", "lava", "brevitas", "ashnets", "quantize", "train"}


def test_the_model_needs_no_lava_and_no_brevitas():
    assert not modules_after("import ashnets.model, ashnets.objectives, train.loop, train.evaluate") & {"lava"}
    assert not modules_after("import ashnets.model, ashnets.objectives") & {"lava", "brevitas", "h5py", "zmq"}


def test_the_command_line_starts_without_heavy_libraries():
    heavy = {"torch", "lava", "brevitas", "timm", "transformers", "matplotlib", "torchvision"}
    assert not modules_after("import ashnets.cli") & heavy
