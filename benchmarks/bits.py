"""What bits cost, as a table: accuracy by format and by how the network was quantized.

    python -m benchmarks.bits OUT.jsonl [FLOAT_RUN ...] [--seeds 3] [--formats int4 ...] [--methods plain best qat]

digits: as many seeds, trained here. FLOAT_RUN: finished float runs, one per seed. Each row is written when it is there,
so that an interrupted table goes on; at the end the means over seeds are printed, with the bytes of the weights alone
and of each file that the network is exported to. `mixed` is the search's assignment at half of int8's bytes, its scores
taken on training (digits) or validation images.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import nn

import quantize
from hw.exchange.formats import FORMATS as EXPORTS
from hw.program import SpikingProgram
from hw.program_file import save_program
from quantize.quantizers import FORMATS, quantizers_of
from quantize.search import Score, search, size_of
from train import digits
from train.bits import layer_weights, scorer
from train.evaluate import evaluate
from train.report.terminal import aligned
from train.run import load_model, open_run, run_program
from train.stages import load_split, qat_config, quantized_run, train_run

MIXED, METHODS = "mixed", ("plain", "best", "qat")
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One float network: weights of each layer, its own accuracy, and what a quantizer by a method makes of it."""

    name: str
    seed: int
    weights: dict[str, int]
    real: Callable[[], float]
    quantized: Callable[[str, str], tuple[float, SpikingProgram]]
    score: Callable[[], Score]


def digits_case(seed: int) -> Case:
    data, net = digits.load_digits(seed), digits.network(seed)
    digits.train(net, list(net.parameters()), data, epochs=60, rate=5e-3, seed=seed)
    spikes = data.train_spikes[:, :512]

    def quantized(quantizer: str, method: str) -> tuple[float, SpikingProgram]:
        if method == "qat":
            start = quantize.qat(net, spikes, quantizer, "best")
            stack = deepcopy(start)
            digits.train(stack, trained(stack), data, epochs=30, rate=2e-3, seed=seed, teacher=net)
            stack = max(start, stack, key=known)  # as a run does, whose best checkpoint may be its first
        else:
            stack = quantize.ptq(net, spikes, quantizer, method)
        return digits.accuracy(stack.eval(), data), quantize.lower(stack)

    @torch.no_grad()
    def known(stack: nn.Module) -> float:
        """Accuracy on training images."""
        right = stack.eval()(data.train_spikes).sum(0).argmax(1) == data.train_labels
        return 100 * float(right.float().mean())

    weights = {"0": 64 * 64, "2": 64 * 10}
    return Case(
        name="digits",
        seed=seed,
        weights=weights,
        real=lambda: digits.accuracy(net, data),
        quantized=quantized,
        score=lambda: lambda quantizer: known(quantize.ptq(net, spikes, quantizer, "best")),
    )


def trained(stack: nn.Module) -> list[nn.Parameter]:
    return [p for p in stack.parameters() if p.requires_grad]


def run_case(folder: Path) -> Case:
    run = open_run(folder)
    test = load_split(run, "test")

    def of(opened, backend: str) -> float:
        return evaluate(run.config.train.task, load_model(opened, backend, CPU), test, run.codec, run.answers).score

    def quantized(quantizer: str, method: str) -> tuple[float, SpikingProgram]:
        steps, ptq = (None, "best") if method == "qat" else (0, method)
        with tempfile.TemporaryDirectory() as scratch:
            made = quantized_run(run, Path(scratch) / "run", qat_config(run, steps, quantizer, ptq))
            finished = train_run(made, CPU, init=run)
            return of(finished, "qat"), run_program(finished)

    return Case(
        name=run.config.train.dataset,
        seed=run.config.train.seed,
        weights=layer_weights(run, CPU),
        real=lambda: of(run, "float"),
        quantized=quantized,
        score=lambda: scorer(run, "best", 200, CPU),
    )


def rows(case: Case, known: set[tuple], formats: list[str], methods: list[str]) -> Iterator[dict]:
    """One for the float network, then one for each format and method that is not known yet."""

    def new(format: str, method: str) -> bool:
        return (case.name, case.seed, format, method) not in known

    def row(format: str, method: str, accuracy: float, **more: object) -> dict:
        return {"case": case.name, "seed": case.seed, "format": format, "method": method, "accuracy": accuracy, **more}

    @cache
    def mixed() -> str:
        return search(case.weights, case.score(), memory=0.5)[0].quantizer

    if new("float", "-"):
        yield row("float", "-", case.real(), bytes=4 * sum(case.weights.values()))
    for format in formats:
        for method in methods:
            if new(format, method):
                quantizer = mixed() if format == MIXED else format
                named = quantizers_of(quantizer, list(case.weights))
                size = size_of(case.weights, {name: str(q) for name, q in named.items()})
                accuracy, program = case.quantized(quantizer, method)
                yield row(format, method, accuracy, quantizer=quantizer, bytes=size, files=file_sizes(program))


def file_sizes(program: SpikingProgram) -> dict[str, int]:
    """Bytes of the program's folder and of the file of each format."""
    sizes: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = save_program(program, Path(scratch) / "program")
        sizes["program"] = sum(path.stat().st_size for path in folder.iterdir())
        for name, kind in EXPORTS.items():
            path = Path(scratch) / kind.file
            kind.write(program, path)
            sizes[name] = path.stat().st_size
    return sizes


def main(out: Path, runs: list[Path], seeds: int, formats: list[str], methods: list[str]) -> None:
    known_rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    known = {(r["case"], r["seed"], r["format"], r["method"]) for r in known_rows}
    makers: list[Callable[[], Case]] = [lambda seed=seed: digits_case(seed) for seed in range(seeds)]
    makers += [lambda folder=folder: run_case(folder) for folder in runs]
    with open(out, "a") as file:
        for make in makers:
            for found in rows(make(), known, formats, methods):
                known_rows.append(found)
                print(json.dumps(found), file=file, flush=True)
                print(*found.values(), flush=True)
    print(table(known_rows))


def table(found: list[dict]) -> str:
    """Mean accuracy over seeds (and their number) by case, format and method."""
    lines = []
    for case in dict.fromkeys(r["case"] for r in found):
        grid = [[case, "bytes", *METHODS]]
        for format in dict.fromkeys(r["format"] for r in found if r["case"] == case):
            of = [r for r in found if (r["case"], r["format"]) == (case, format)]
            cells = []
            for method in ("-",) if format == "float" else METHODS:
                values = [r["accuracy"] for r in of if r["method"] == method]
                cells.append(f"{sum(values) / len(values):.2f} ({len(values)})" if values else "-")
            size = sum(r["bytes"] for r in of) // len(of)
            grid.append([format, f"{size:,}", *cells, *[""] * (len(METHODS) - len(cells))])
        lines += ["", *aligned(grid), "", *aligned(file_grid([r for r in found if r["case"] == case and "files" in r]))]
    return "\n".join(lines)


def file_grid(found: list[dict]) -> list[list[str]]:
    """Mean bytes of each file by format."""
    kinds = ["program", *EXPORTS]
    grid = [["bytes of files", *kinds]]
    for format in dict.fromkeys(r["format"] for r in found):
        of = [r["files"] for r in found if r["format"] == format]
        grid.append([format, *(f"{sum(files[kind] for files in of) // len(of):,}" for kind in kinds)])
    return grid


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", type=Path, nargs="*")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--formats", nargs="+", default=[*FORMATS, MIXED], choices=[*FORMATS, MIXED])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    main(**vars(parser.parse_args()))
