"""Simulate from file to file: a program or a `.net`, spikes in, spikes out. Needs numpy and h5py alone."""

from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile

import numpy as np

from hw.artifact import check_place, open_artifact, staged_file
from hw.errors import UserError
from hw.loihi import MESSAGE_BITS_MAX
from hw.netx_reader import examine_net, first_input, read_net
from hw.program import Input, SpikingProgram
from hw.program_file import KIND, load_program, read_program
from hw.simulate.base import Result, open_backend
from hw.validate import problems


def examine_program(path: Path) -> list[str]:
    """One line for everything in a program's folder or a `.net` file that the chip would not hold."""
    if path.is_dir():
        return problems(read_program(open_artifact(path, KIND).folder))
    return examine_net(path)


def load_numbers(path: Path) -> np.ndarray:
    """The array of an `.npy` file, of finite numbers."""
    try:
        with open(path, "rb") as file:
            values = np.load(file, allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; give an .npy of spikes [T, ...] or [B, T, ...]") from error
    except (OSError, ValueError, EOFError, BadZipFile, MemoryError) as error:
        raise UserError(f"{path}: not an .npy file of numbers ({error}); save it with numpy.save") from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "biuf" or values.size == 0:
        raise UserError(f"{path}: holds no array of numbers; save spikes [T, ...] or [B, T, ...] with numpy.save")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise UserError(f"{path}: holds {values[~np.isfinite(values)].flat[0]}, spikes are integers; encode them first")
    return values.astype(values.dtype.newbyteorder("="), copy=False)  # torch takes no other


def _whole(values: np.ndarray, source: Path) -> np.ndarray:
    if values.dtype.kind == "f":
        odd = values[values != np.round(values)]
        if odd.size:
            raise UserError(f"{source}: holds {odd.flat[0]}, spikes are integers; encode them first")
        values = values.astype(np.int64)
    return values


@dataclass(frozen=True, kw_only=True)
class Job:
    """A program and what it is to run: spikes [T, B, ...], as `Backend.run` takes them. batch: they were a batch."""

    program: SpikingProgram
    spikes: np.ndarray
    batch: bool


def load_job(path: Path, values: np.ndarray, source: Path, first: int = 0) -> Job:
    """path: a program's folder, or a `.net` file, from layer `first` on. values: what the `.npy` file `source` holds.

    T is the values'. A `.net` file tells neither the shape of a convolution's input nor whether it is graded: the
    values do. An input layer takes images, which are encoded here.
    """
    if path.is_dir():
        program = _behind(load_program(path), first, path)
    else:
        rank, size = first_input(path, first)
        if size is not None:  # a dense layer: as many trailing axes as hold its inputs
            rank = next((k for k in range(1, values.ndim) if prod(values.shape[-k:]) == size), 1)
        if values.ndim not in (rank + 1, rank + 2):
            raise UserError(
                f"{source}: spikes have shape {values.shape}, layer {first} of {path} takes "
                f"{f'{rank} axes' if size is None else size} a step; give [T, ...] or [B, T, ...]"
            )
        program = read_net(path, steps=1, input_shape=values.shape[-rank:], first=first)
        if isinstance(program.layers[0], Input):  # the file tells how many axes its images have
            values = values.reshape(*values.shape[:-rank], *program.input_shape)
    image = program.layers[0] if isinstance(program.layers[0], Input) else None
    if image and program.input_shape[1:] == (1, 1) and values.shape[-2:] != (1, 1):
        values = values[..., None, None]  # an image of one axis
    if image and program.input_shape[0] == 1 and values.shape[-3:] != program.input_shape:
        values = values[..., None, :, :]
    batch = _is_batch(values, program.input_shape, source)
    values = image.encode(values) if image else _whole(values, source)
    bits = int(np.abs(values.astype(np.int64)).max()).bit_length()
    if not image and not path.is_dir() and (bits > 1 or values.min() < 0):
        if bits > MESSAGE_BITS_MAX:
            raise UserError(f"{source}: holds values of {bits} bits, a graded spike has {MESSAGE_BITS_MAX}; rescale it")
        program = replace(program, input_bits=bits)
    spikes = values.swapaxes(0, 1) if batch else values[:, None]
    return Job(program=replace(program, steps=len(spikes)), spikes=spikes, batch=batch)


def _behind(program: SpikingProgram, first: int, path: Path) -> SpikingProgram:
    """The program from layer `first` on."""
    if not 0 <= first < len(program.layers):
        raise UserError(f"{path}: has layers 0 to {len(program.layers) - 1}, and none to start with at {first}")
    return program.part(first)


def _is_batch(spikes: np.ndarray, input_shape: tuple[int, ...], source: Path) -> bool:
    extra = spikes.ndim - len(input_shape)
    if extra not in (1, 2) or spikes.shape[extra:] != input_shape:
        raise UserError(
            f"{source}: spikes have shape {spikes.shape}, the program takes (T, {', '.join(map(str, input_shape))}) "
            "or (B, T, ...) of it"
        )
    return extra == 2


def simulate_file(
    program: Path,
    spikes: Path,
    out: Path,
    *,
    backend: str,
    keys: Path | None = None,
    layers: bool = False,
    first: int = 0,
) -> dict[str, float]:
    """Run `spikes` through `program`, from layer `first` on, and write the last layer's to `out`, shaped as the input
    is; with `layers`, every layer's spikes, u and v to `<out>.layers.npz` under `<layer>.s`, `.u` and `.v`. Returns
    each layer's firing rate."""
    traces = out.with_name(f"{out.stem}.layers.npz")
    for path in (out, *([traces] if layers else [])):
        check_place(path, "out.npy")
    job = load_job(program, load_numbers(spikes), spikes, first)
    result = open_backend(backend, job.program, keys).run(job.spikes, layers=True, states=layers)

    def as_given(array: np.ndarray) -> np.ndarray:
        return array.swapaxes(0, 1) if job.batch else array[:, 0]

    with ExitStack() as both:  # in place together, or neither

        def opened(path: Path) -> IO[bytes]:
            return both.enter_context(open(both.enter_context(staged_file(path)), "wb"))

        np.save(opened(out), as_given(result.output))
        if layers:
            kept: dict[str, Any] = {key: as_given(value) for key, value in _traces(result).items()}
            np.savez_compressed(opened(traces), **kept)
    return {name: float(s.mean()) for name, s in result.layers.items()}


def _traces(result: Result) -> dict[str, np.ndarray]:
    return {
        f"{name}.{key}": values[name]
        for key, values in (("s", result.layers), ("u", result.u), ("v", result.v))
        for name in values
    }
