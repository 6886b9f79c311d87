"""Read mutated files of one kind, one after the other: run as a process, since a crash is one of the findings.

    python -m tests.hw.fuzz_files KIND COUNT FOLDER

prints the number of each file before it is read, and "refused" or "loaded" behind it. KIND: one of `readers`.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from hw.errors import UserError
from hw.exchange.export import export_program, random_spikes
from hw.exchange.export import read_export as read_export_folder
from hw.exchange.formats import FORMATS, Sample
from hw.layers import Conv, Dense, Flatten, Recurrent
from hw.netx_file import write_net
from hw.netx_reader import examine_net, read_net
from hw.program import SpikingProgram
from hw.program_file import read_program, write_program
from hw.validate import problems, validate


def program() -> SpikingProgram:
    rng = np.random.default_rng(0)
    neuron = {"decay_u_int": 1000, "decay_v_int": 200, "v_th_mant": 120}
    conv = Conv(name="conv0", weight_int=rng.integers(-60, 60, (4, 2, 3, 3)), padding=(1, 1), **neuron)
    heard = Recurrent(
        name="dense_rec2",
        weight_int=rng.integers(-60, 60, (5, 144)),
        weight_rec_int=rng.integers(-60, 60, (5, 5)),
        **neuron,
    )
    dense = Dense(name="dense3", weight_int=rng.integers(-60, 60, (3, 5)), delay=np.array([0, 1, 2, 3, 4]), **neuron)
    return SpikingProgram(input_shape=(2, 6, 6), steps=7, layers=(conv, Flatten(name="flatten1"), heard, dense))


def chain() -> SpikingProgram:
    """The part of `program` that every format holds."""
    whole = program()
    dense = Dense(name="dense", weight_int=np.eye(3, 144, dtype=int), decay_u_int=9, decay_v_int=8, v_th_mant=7)
    return replace(whole, layers=(*whole.layers[:2], dense))


def mutated(data: bytes, rng: np.random.Generator, text: bool) -> bytes:
    """Bits flipped, bytes overwritten by telling ones, pieces cut, doubled or exchanged."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        at, size = int(rng.integers(0, len(out) or 1)), int(rng.integers(1, 9))
        match rng.integers(0, 5):
            case 0:
                out[at : at + 1] = bytes([out[at] ^ 1 << int(rng.integers(0, 8))]) if out else b""
            case 1:
                telling = [b"-1", b"1e9", b"null", b"[]", b"{", b'"', b"99999999999999999999", b"NaN", b"true"]
                binary = [b"\0" * size, b"\xff" * size, b"\x7f" + b"\xff" * size, rng.bytes(size)]
                value = (telling if text else binary)[int(rng.integers(0, 9 if text else 4))]
                out[at : at + (int(rng.integers(0, 4)) if text else len(value))] = value
            case 2:
                del out[at : at + size]
            case 3 if rng.random() < 0.2:
                del out[at:]
            case _:
                other = int(rng.integers(0, len(out) or 1))
                out[at : at + size] = out[other : other + size]
    return bytes(out)


def readers(folder: Path) -> dict[str, tuple[bytes, Callable[[bytes], object]]]:
    """Kind -> (a whole file, what reads a mutated one)."""
    net = write_net(program(), folder / "a.net")
    parts = folder / "parts"
    parts.mkdir()
    write_program(program(), parts)

    def read_mutated_net(data: bytes) -> object:
        net.write_bytes(data)
        examine_net(net)
        return read_net(net, steps=7, input_shape=(2, 6, 6))

    def read_mutated_part(name: str) -> Callable[[bytes], object]:
        whole = (parts / name).read_bytes()

        def read(data: bytes) -> object:
            (parts / name).write_bytes(data)
            try:
                found = read_program(parts)
            finally:
                (parts / name).write_bytes(whole)
            assert problems(found) is not None
            return validate(found)

        return read

    def read_export(format: str) -> tuple[bytes, Callable[[bytes], object]]:
        kind, held = FORMATS[format], chain()
        path = folder / kind.file
        kind.write(held, path)

        def read(data: bytes) -> object:
            path.write_bytes(data)
            return kind.read(path, Sample.of(held))

        return path.read_bytes(), read

    def read_mutated_manifest(data: bytes) -> object:
        (export / "manifest.json").write_bytes(data)
        return read_export_folder(export)[0]

    export = folder / "export"
    export_program(chain(), export, "qcdq", random_spikes(chain(), 1))
    return {
        "manifest": ((export / "manifest.json").read_bytes(), read_mutated_manifest),
        **{format: read_export(format) for format in ("qcdq", "qcdq-scan", "qonnx", "nir")},
        "net": (net.read_bytes(), read_mutated_net),
        "json": ((parts / "program.json").read_bytes(), read_mutated_part("program.json")),
        "weights": ((parts / "weights.safetensors").read_bytes(), read_mutated_part("weights.safetensors")),
    }


def main(kind: str, count: int, folder: Path) -> None:
    whole, read = readers(folder)[kind]
    read(whole)
    rng = np.random.default_rng(0)
    for i in range(count):
        data = mutated(whole, rng, text=kind in ("json", "manifest"))
        print(i, end=" ", flush=True)
        try:
            read(data)
        except UserError as error:
            print("refused" if "\n" not in str(error) else f"more than one line: {error!r}", flush=True)
        else:
            print("loaded", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
