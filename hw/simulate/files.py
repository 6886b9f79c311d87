"""Simulate from file to file: a program or a `.net`, spikes in, spikes out. Needs numpy and h5py alone."""

from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np

from hw.artifact import open_artifact, staged_file
from hw.errors import UserError
from hw.loihi import MESSAGE_BITS_MAX
from hw.netx_reader import examine_net, first_input, read_net
from hw.program import SpikingProgram
from hw.program_file import KIND, load_program, read_program
from hw.simulate.base import Result, open_backend
from hw.validate import problems


def examine_program(path: Path) -> list[str]:
    """One line for everything in a program's folder or a `.net` file that the chip would not hold."""
    if path.is_dir():
        return problems(read_program(open_artifact(path, KIND).folder))
    return examine_net(path)


def load_spikes(path: Path) -> np.ndarray:
    """The array of an `.npy` file, as integers or bool."""
    try:
        spikes = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; give an .npy of spikes [T, ...] or [B, T, ...]") from error
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: not an .npy file of numbers ({error}); save it with numpy.save") from error
    if not isinstance(spikes, np.ndarray) or spikes.dtype.kind not in "biuf" or spikes.size == 0:
        raise UserError(f"{path}: holds no array of numbers; save spikes [T, ...] or [B, T, ...] with numpy.save")
    if spikes.dtype.kind == "f":
        odd = spikes[~np.isfinite(spikes) | (spikes != np.round(spikes))]
        if odd.size:
            raise UserError(f"{path}: holds {odd.flat[0]}, spikes are integers; encode them first")
        spikes = spikes.astype(np.int64)
    return spikes


def load_any_program(path: Path, spikes: np.ndarray, source: Path) -> tuple[SpikingProgram, bool]:
    """(program for these spikes, whether they are a batch). path: a program's folder, or a `.net` file.

    T is the spikes'. A `.net` file tells neither the shape of a convolution's input nor whether it is graded: the
    spikes do.
    """
    if path.is_dir():
        program = load_program(path)
        batch = _is_batch(spikes, program.input_shape, source)
        return replace(program, steps=spikes.shape[1] if batch else spikes.shape[0]), batch
    rank, size = first_input(path)
    if size is not None:  # a dense layer: as many trailing axes as hold its inputs
        rank = next((k for k in range(1, spikes.ndim) if prod(spikes.shape[-k:]) == size), 1)
    if spikes.ndim not in (rank + 1, rank + 2):
        raise UserError(
            f"{source}: spikes have shape {spikes.shape}, the first layer of {path} takes "
            f"{'(C, H, W)' if size is None else size} a step; give [T, ...] or [B, T, ...]"
        )
    input_shape = spikes.shape[-rank:]
    batch = _is_batch(spikes, input_shape, source)
    steps = spikes.shape[1] if batch else spikes.shape[0]
    program = read_net(path, steps=steps, input_shape=input_shape)
    largest = int(np.abs(spikes.astype(np.int64)).max())
    if largest > 1 or spikes.min() < 0:
        if largest.bit_length() > MESSAGE_BITS_MAX:
            raise UserError(f"{source}: holds {largest}, a graded spike has {MESSAGE_BITS_MAX} bits; rescale it")
        program = replace(program, input_bits=largest.bit_length())
    return program, batch


def _is_batch(spikes: np.ndarray, input_shape: tuple[int, ...], source: Path) -> bool:
    extra = spikes.ndim - len(input_shape)
    if extra not in (1, 2) or spikes.shape[extra:] != input_shape:
        raise UserError(
            f"{source}: spikes have shape {spikes.shape}, the program takes (T, {', '.join(map(str, input_shape))}) "
            "or (B, T, ...) of it"
        )
    return extra == 2


def simulate_file(program: Path, spikes: Path, out: Path, *, backend: str, layers: bool) -> dict[str, float]:
    """Run `spikes` through `program` and write the last layer's to `out`, shaped as the input is; with `layers`, every
    layer's spikes, u and v to `<out>.layers.npz` under `<layer>.s`, `.u` and `.v`. Returns each layer's firing rate."""
    values = load_spikes(spikes)
    loaded, batch = load_any_program(program, values, spikes)
    stacked = values.swapaxes(0, 1) if batch else values[:, None]
    result = open_backend(backend, loaded).run(stacked, layers=True, states=layers)

    def as_given(array: np.ndarray) -> np.ndarray:
        return array.swapaxes(0, 1) if batch else array[:, 0]

    with staged_file(out) as temporary, open(temporary, "wb") as file:
        np.save(file, as_given(result.output))
    if layers:
        with staged_file(out.with_name(f"{out.stem}.layers.npz")) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, **{key: as_given(value) for key, value in _traces(result).items()})
    return {name: float(s.mean()) for name, s in result.layers.items()}


def _traces(result: Result) -> dict[str, np.ndarray]:
    return {
        f"{name}.{key}": values[name]
        for key, values in (("s", result.layers), ("u", result.u), ("v", result.v))
        for name in values
    }
