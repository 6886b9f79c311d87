"""How a step is run changes its speed and memory, and neither what it computes nor what a run is."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.cpp_extension import get_cxx_compiler

from tests.conftest import micro_config
from tests.train.test_loop import same
from train.checkpoint import newest_checkpoint
from train.config import TrainConfig
from train.execution import _dropout, precision
from train.loop import Trainer
from train.run import load_model
from train.stages import load_split, new_run, qat_config, quantized_run, train_run

CPU = torch.device("cpu")
EVERY = {"itc": 1.0, "mlm": 1.0, "scl": 0.2, "stua": 0.2}


def step_of(run, **changes) -> tuple[dict[str, torch.Tensor], int]:
    """The gradients of a run's first step, and the bytes that were kept for its backward pass."""
    changed = replace(run, config=replace(run.config, train=replace(run.config.train, **changes)))
    trainer = Trainer(changed, load_split(run, "train"), load_split(run, "val"), CPU)
    trainer.start()
    trainer.optimizer.step = lambda: None
    kept: dict[int, int] = {}

    def keep(value: torch.Tensor) -> torch.Tensor:
        if not isinstance(value, nn.Parameter):
            kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        trainer.train_step(trainer.batches[0].to(CPU))
    return {name: p.grad for p, name in trainer.names.items() if p.grad is not None}, sum(kept.values())


@pytest.fixture
def run(tmp_path, few_records):
    config = micro_config("retrieval", objectives=EVERY)
    text = replace(config.model.text, depth=2, dropout=0.1)
    concrete = replace(config.model.concrete, depth=3, dropout=0.1)
    return new_run(tmp_path / "run", replace(config, model=replace(config.model, concrete=concrete, text=text)))


def assert_equal(ours: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], **tolerance: float) -> None:
    assert ours.keys() == wanted.keys()
    for name, grad in wanted.items():
        torch.testing.assert_close(ours[name], grad, msg=lambda told, name=name: f"{name}: {told}", **tolerance)


def test_blocks_that_are_computed_twice_give_the_same_gradients_from_less_memory(run):
    plain, kept = step_of(run)
    again, kept_again = step_of(run, recompute=True)
    assert_equal(again, plain, atol=0, rtol=0)  # dropout too
    assert kept_again < 0.8 * kept


def test_bert_s_blocks_are_computed_twice_too(run):
    text = replace(run.config.model.text, kind="bert", lexicon=0)
    run = replace(run, config=replace(run.config, model=replace(run.config.model, text=text)))
    plain, kept = step_of(run)
    again, kept_again = step_of(run, recompute=True)
    assert_equal(again, plain, atol=0, rtol=0)
    assert kept_again < 0.8 * kept


def test_bfloat16_on_processors_trains_close_to_float32_with_weights_of_32_bits(run):
    wide, _ = step_of(run, precision="float32")
    half, _ = step_of(run, precision="bfloat16")
    assert all(grad.dtype == torch.float32 for grad in half.values())
    a, b = (torch.cat([grads[name].flatten() for name in wide]) for grads in (wide, half))
    assert 0.7 < torch.cosine_similarity(a, b, dim=0) < 0.99999


def test_processors_without_units_for_bfloat16_train_in_float32(monkeypatch):
    config = TrainConfig()
    for units, wanted in (
        ({}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda units=units: units)
        assert precision(config, CPU) == wanted
        assert precision(config, torch.device("cuda")) == torch.bfloat16
        assert precision(replace(config, precision="float32"), CPU) == torch.float32


def test_a_bfloat16_run_is_quantized_and_ends_with_the_same_bits_every_time(tmp_path, few_records):
    config = micro_config("vqa", precision="bfloat16", steps=2)
    first, again = (train_run(new_run(tmp_path / name, config), CPU) for name in "ab")
    assert same(first.folder, again.folder)
    made = train_run(quantized_run(first, tmp_path / "q", qat_config(first, 2)), CPU, init=first)
    assert newest_checkpoint(made.folder).step == 2
    assert next(load_model(made, "qat", CPU).parameters()).dtype == torch.float32


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo asks for it
def test_every_branch_is_captured_as_one_graph(run, monkeypatch):
    compiled = []
    make = torch.compile

    def counted(forward, *, fullgraph, mode):
        assert fullgraph
        compiled.append(mode)
        return make(forward, fullgraph=True, backend="aot_eager")  # inductor's work takes a minute and adds nothing

    monkeypatch.setattr(torch, "compile", counted)
    monkeypatch.setattr(nn.Dropout, "train", lambda module, mode=True: nn.Module.train(module, False))  # draws differ
    text = replace(run.config.model.text, lexicon=0)
    train = replace(run.config.train, objectives={"itc": 1.0, "scl": 0.2, "stua": 0.2})
    run = replace(run, config=replace(run.config, model=replace(run.config.model, text=text), train=train))
    plain, _ = step_of(run, precision="float32")
    ours, _ = step_of(run, precision="float32", compile="default")
    layers = len(run.config.model.abstract.convs) + len(run.config.model.abstract.dense)
    assert compiled == ["default"] * (4 + layers)
    assert_equal(ours, plain, atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_many_spiking_layers_are_compiled_for_every_size_of_batch(tmp_path, few_records, monkeypatch):
    make = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, *, fullgraph, mode: make(f, fullgraph=fullgraph, backend="eager"))
    monkeypatch.setattr("train.evaluate.BATCH", 7)
    config = micro_config(steps=2, save_every=1, compile="default")
    abstract = replace(config.model.abstract, convs=((6, 2), (6, 1), (6, 1), (6, 1)), dense=(12,))
    run = new_run(tmp_path / "run", replace(config, model=replace(config.model, abstract=abstract)))
    assert len(load_split(run, "val")) % 7
    assert newest_checkpoint(train_run(run, CPU).folder).step == 2


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0])
def test_dropout_on_processors_keeps_the_share_and_the_mean(p):
    module, x = nn.Dropout(p), torch.ones(401, 33, requires_grad=True)
    y = _dropout(module, x)
    assert (y == 0).float().mean().item() == pytest.approx(p, abs=0.01)
    assert y.mean().item() == pytest.approx(1.0 if p < 1 else 0.0, abs=0.02)
    assert len(y.unique()) == (2 if 0 < p < 1 else 1)
    y.sum().backward()
    assert torch.equal(x.grad, y)
    columns = (y == 0).float()
    assert columns.mean(0).std() < 0.04  # each of the draws in a word of 64 bits is as likely
    assert torch.equal(_dropout(module.eval(), x), x)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("default")  # of inductor's own
def test_a_compiled_run_trains_as_the_plain_one_and_leaves_a_plain_run(tmp_path, few_records):
    if not torch.utils.cpp_extension.check_compiler_ok_for_platform(get_cxx_compiler()):
        pytest.skip("inductor needs a C++ compiler")
    config = micro_config("retrieval", objectives=EVERY)
    plain = train_run(new_run(tmp_path / "plain", config), CPU)
    fast = replace(config, train=replace(config.train, compile="default"))
    made = train_run(new_run(tmp_path / "made", fast), CPU)
    ours, wanted = (newest_checkpoint(r.folder).tensors("weights") for r in (made, plain))
    assert ours.keys() == wanted.keys()
    load_model(made, "float", CPU)


def heap(keep: bool) -> list[list[int]]:
    """Bytes of a process's heap, and blocks beside it: before 30 MB are asked for, with them, and when they were given
    back."""
    program = f"""
import ctypes
from train.execution import keep_memory
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks a b c d e f".split()]
libc = ctypes.CDLL(None)
libc.mallinfo2.restype, libc.malloc.restype, libc.free.argtypes = Info, ctypes.c_void_p, [ctypes.c_void_p]
def tell():
    info = libc.mallinfo2()
    print(info.arena, info.hblks)
{keep} and keep_memory()
tell()
given = libc.malloc(30_000_000)
tell()
libc.free(given)
tell()
"""
    told = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True)
    return [[int(number) for number in line.split()] for line in told.stdout.splitlines()]


def test_memory_that_a_step_gives_back_is_kept_for_the_next():
    before, held, after = heap(keep=True)
    assert held == after
    assert held[1] == before[1]
    before, held, after = heap(keep=False)  # a block beside the heap, which goes back to the system
    assert held[1] == before[1] + 1
    assert after[1] == before[1]
