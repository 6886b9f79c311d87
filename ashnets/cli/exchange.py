"""Commands that take a network to other tools: export, run, verify."""

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ashnets.cli.common import Device, check_samples, done, refuse_keys
from hw.artifact import kind_of
from hw.errors import UserError

Source = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]


def export(
    source: Source,
    /,
    format: Literal["netx", "qcdq", "qcdq-scan", "qonnx", "nir", "onnx", "bundle"] = "qcdq",
    out: Path | None = None,
    samples: int | None = None,
    json: bool = False,
) -> int:
    """Write RUN, a quantized run, in a form that other tools read. Into RUN-FORMAT unless --out is given.

    Its spiking program, or that of a program's folder. netx: Lava-DL's .net. qcdq: ONNX of one step with explicit
    state, for onnxruntime. qcdq-scan: ONNX of a whole sample. qonnx: for FINN-style tools. nir: for spikingjelly and
    other simulators.

    onnx: all that is around the program, as ONNX models. bundle: these, the program and all that 'ashnets run' needs
    to answer without torch.

    What was written is read back and run before it is kept; --samples random ones (4) are compared, spike for spike,
    or test images (all) for onnx and bundle.
    """
    check_samples(samples)
    folder = out or source.absolute().with_name(f"{source.absolute().name}-{format}")
    if format in ("onnx", "bundle"):
        return _export_host(source, folder, format, samples, json)
    from hw.exchange.export import export_program, random_spikes

    program = _program(source)
    meta = export_program(program, folder, format, random_spikes(program, 4 if samples is None else samples))
    checked = meta["checked"]
    line = (
        f"wrote {folder / meta['file']}, {meta['bytes']:,} bytes: the same integers, "
        f"0 of {checked['spikes']} spikes differ"
    )
    return done({"run": str(source), "out": str(folder), **meta}, json, line)


def _export_host(source: Path, folder: Path, format: str, samples: int | None, json: bool) -> int:
    from train.export import export_run
    from train.run import open_run

    meta = export_run(open_run(source), folder, bundle=format == "bundle", samples=samples)
    checked = meta["checked"]
    line = (
        f"wrote {folder}, {meta['bytes']:,} bytes; on {checked['images']} images and {checked['texts']} texts "
        f"{checked['mismatching_input_spikes']} of {checked['input_spikes']} input spikes differ from torch's, and no "
        "program spike or answer"
    )
    if format == "bundle":
        line += f"\nnext: ashnets run {folder} --image {' '.join(['PICTURE'] * meta['images'])} --text TEXT"
    return done({"run": str(source), "out": str(folder), "format": format, **meta}, json, line)


def run(
    bundle: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="BUNDLE")],
    /,
    image: tuple[Path, ...],
    text: tuple[str, ...],
    backend: str = "reference",
    top: int = 5,
    keys: Path | None = None,
    json: bool = False,
) -> int:
    """Ask a BUNDLE about a picture; torch is not needed. It answers each text, or, made of a run that only retrieves,
    sorts the texts by their likeness to the picture.

    image: the picture, or the two of a pair where the run learned from pairs. top: how many answers, or texts, are
    told. backend: what runs the spiking program. keys: for remote workers.
    """
    from hw.bundle import open_bundle

    refuse_keys(keys, backend)
    results = open_bundle(bundle, backend, keys).ask(image, text, top)
    for result in results:
        if "answers" not in result:
            print(f"{result['similarity']:7.4f}  {result['text']}")
            continue
        print(result["text"])
        for found in result["answers"]:
            print(f"{found['probability']:7.4f}  {found['answer']}")
    return done(
        {"bundle": str(bundle), "images": [str(path) for path in image], "backend": backend, "results": results}, json
    )


def _program(source: Path) -> Any:
    """The program of a run's folder or of its own."""
    from hw.program_file import KIND, load_program

    if source.is_file():
        raise UserError(f"{source}: is a file; export takes a quantized run or a program's folder")
    if kind_of(source) == KIND:
        return load_program(source)
    from train.run import open_run, run_program

    return run_program(open_run(source))


def verify(
    source: Source,
    /,
    input: Path | None = None,
    samples: int | None = None,
    slow_samples: int = 64,
    device: Device = "auto",
    json: bool = False,
) -> int:
    """Run the test images of the quantized RUN through every runtime and every exported file, and count the spikes
    that differ from the reference, layer by layer. Exit code 1 if one does, the float network's aside.

    RUN may also be a program's folder or a .net file, with --input SPIKES.npy, [T, ...] or [B, T, ...]. samples: images
    for the fast runtimes, by default all. slow_samples: for Lava and QONNX's executor, 0 leaves them out.
    """
    from hw.program_file import KIND
    from quantize.verify import RUNTIMES
    from train.report.terminal import joint_table

    check_samples(samples)
    if input is None and (source.is_file() or kind_of(source) == KIND):
        raise UserError(f"{source}: a program brings no spikes to run; give --input SPIKES.npy, or the run it is of")
    if slow_samples < 0:
        raise UserError(f"--slow-samples is {slow_samples}; give 1 or more, or 0 to leave Lava and QONNX out")
    limits = {name: samples if limit is None else slow_samples for name, limit in RUNTIMES.items()}
    limits = {name: limit for name, limit in limits.items() if limit != 0}
    joints = _joints_of_run(source, limits, device) if input is None else _joints_of_program(source, input, limits)
    print(joint_table(joints))
    well = all(joint.well for joint in joints)
    done({"run": str(source), "well": well, "joints": [joint_values(joint) for joint in joints]}, json)
    return 0 if well else 1


def _joints_of_run(run: Path, limits: dict[str, int | None], device: str) -> Any:
    from train.joints import verify_run
    from train.run import choose_device, open_run

    return verify_run(open_run(run), limits, choose_device(device))


def _joints_of_program(source: Path, spikes: Path, limits: dict[str, int | None]) -> Any:
    import torch

    from hw.simulate.files import load_job, load_numbers
    from quantize.verify import verify as joints_of

    job = load_job(source, load_numbers(spikes), spikes)
    return joints_of(job.program, torch.from_numpy(job.spikes).split(64, 1), limits)


def joint_values(joint: Any) -> dict[str, Any]:
    """One row of the joint table, for JSON."""
    keys = ("samples", "integers", "mismatches", "compared", "refused")
    found = {key: getattr(joint, key) for key in keys}
    return {"runtime": joint.left, **found, "mismatching_spikes": joint.total, "output_equal": joint.output_equal}
