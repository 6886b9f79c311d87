"""The energy that the machine itself reports over a call: RAPL for processors, NVML for NVIDIA GPUs.

    joules = (counter after - counter before) mod the counter's range

It is all that the package or the GPU drew meanwhile, by whatever ran on it, idle power included. Where a machine
exposes no counter there is no figure, and the reason is told.
"""

import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """joules: by counter, None where there is none; `psys`, where a machine has it, contains the packages. reason: what
    was looked for and is not there."""

    joules: dict[str, float] | None
    seconds: float
    reason: str


@dataclass(frozen=True)
class Counter:
    """read: its joules. span: the joules after which it starts again at 0, None if never."""

    name: str
    read: Callable[[], float]
    span: float | None


def measured_joules(
    call: Callable[[], T], powercap: Path = POWERCAP, nvml: str = "libnvidia-ml.so.1"
) -> tuple[T, Measured]:
    """What `call` returns, and the energy that the machine reports for it.

    A counter that wraps twice during the call cannot be told from one that wraps once: keep calls below span / power,
    which is tens of minutes. RAPL is renewed about every millisecond.
    """
    processors, no_processor = _rapl(powercap)
    gpus, no_gpu = _gpus(nvml)
    counters = processors + gpus
    before, start = [counter.read() for counter in counters], time.monotonic()
    value = call()
    seconds, after = time.monotonic() - start, [counter.read() for counter in counters]
    joules = {
        counter.name: (b - a) % counter.span if counter.span else b - a
        for counter, a, b in zip(counters, before, after, strict=True)
    }
    reason = "; ".join(filter(None, (no_processor, no_gpu)))
    return value, Measured(joules=joules or None, seconds=seconds, reason=reason)


def _rapl(powercap: Path) -> tuple[list[Counter], str]:
    """A counter for each top-level zone (package-0, ..., psys), and why there is none."""
    found: list[Counter] = []
    reasons = [] if powercap.is_dir() else [f"{powercap} does not exist (no RAPL on this machine, or not for guests)"]
    for zone in sorted(powercap.glob("intel-rapl:*")):
        if zone.name.count(":") > 1:
            continue  # a part of a zone that is counted already
        try:
            name, span = (zone / "name").read_text().strip(), int((zone / "max_energy_range_uj").read_text())
            counter = Counter(name, lambda path=zone / "energy_uj": int(path.read_text()) / 1e6, span / 1e6)
            counter.read()
        except OSError as error:
            reasons.append(f"{error.filename}: {error.strerror}")
            continue
        found.append(counter)
    if not found and not reasons:
        reasons.append(f"{powercap} holds no intel-rapl zone")
    return found, "; ".join(reasons)


def _gpus(nvml: str) -> tuple[list[Counter], str]:
    """A counter for each NVIDIA GPU, in millijoules since the driver was loaded, and why there is none."""
    try:
        library = ctypes.CDLL(nvml)
    except OSError:
        return [], f"no {nvml} (no NVIDIA driver)"
    number = ctypes.c_uint()
    if library.nvmlInit_v2() or library.nvmlDeviceGetCount_v2(ctypes.byref(number)):
        return [], f"{nvml} finds no GPU"
    counters = []
    for index in range(number.value):
        handle, energy = ctypes.c_void_p(), ctypes.c_ulonglong()

        def read(handle: ctypes.c_void_p = handle, energy: ctypes.c_ulonglong = energy) -> float:
            if library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(energy)):
                raise OSError("NVML reports no energy for this GPU")
            return energy.value / 1e3

        if library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)):
            continue
        try:
            read()
        except OSError:
            continue  # older than Volta
        counters.append(Counter(f"gpu {index}", read, None))
    return counters, "" if counters else f"{nvml} reports no energy for its GPUs"
