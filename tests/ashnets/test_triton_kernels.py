"""CUBA-LIF's Triton kernels against the plain loop: in Triton's interpreter, or on the graphics card where there is
one."""

import os
import subprocess
import sys

import pytest
import torch

from ashnets.kernels import cuda, lif
from ashnets.neurons import LIFParams, cuba_lif, cuba_lif_loop
from ashnets.surrogate import SURROGATES

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _triton(monkeypatch):
    monkeypatch.setattr(lif, "kernels", lambda device: cuda)


def params(channels: int, rank: int, per_channel: bool, dtype: torch.dtype) -> LIFParams:
    shape = (channels, *[1] * (rank - 2))

    def made(value: float, low: float = 0.5) -> torch.Tensor:
        one = torch.tensor(value, dtype=dtype, device=DEVICE)
        return (one * torch.linspace(low, 1, channels, dtype=dtype, device=DEVICE)).view(shape) if per_channel else one

    bias = torch.linspace(-0.2, 0.3, channels, dtype=dtype, device=DEVICE).view(shape)
    return LIFParams(made(0.3), made(0.2), made(1.0), bias)


def inputs(shape: tuple[int, ...], dtype: torch.dtype, last: bool = False) -> torch.Tensor:
    x = torch.randn(shape, dtype=torch.float64).to(dtype).to(DEVICE)
    return x.movedim(2, -1).contiguous().movedim(-1, 2) if last else x


def run(function, x, weight, p, name, fixed=False):
    x, p = x.detach().clone().requires_grad_(), LIFParams(*(v.clone().requires_grad_(not fixed) for v in p))
    s = function(x, p, name)
    (s * weight).sum().backward()
    return s, [value.grad for value in ((x,) if fixed else (x, *p))]


def compare(x, p, name, fixed=False):
    """16-bit x against the plain loop of the same values in 32."""
    narrow, wide = x.dtype, x.to(p.bias.dtype)
    weight = torch.randn_like(wide).to(narrow)
    s, grads = run(cuba_lif, x, weight, p, name, fixed)
    truth, grads_truth = run(
        lambda *given: cuba_lif_loop(*given[:2], SURROGATES[name]), wide, weight.to(wide), p, name, fixed
    )
    assert s.dtype == narrow
    assert s.stride() == x.stride()
    assert torch.equal(s.to(wide), truth)
    assert s.any()
    tolerance = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 1e-3}
    for k, (ours, theirs) in enumerate(zip(grads, grads_truth, strict=True)):
        near = tolerance[narrow if k == 0 else p.bias.dtype]
        assert torch.allclose(ours.to(theirs), theirs, rtol=near, atol=near * float(1 + theirs.abs().max()))


# Odd sizes: neither rows nor columns fill their tiles; (33, 70) has more rows than one, the last more columns.
SHAPES = [(1, 1), (3, 5), (33, 70), (2, 3, 7), (2, 3, 5, 9), (2, 1, 1, 1), (1, 3, 37, 31)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_shape_layout_and_type(shape, per_channel, last, dtype):
    wide = torch.float32 if dtype.itemsize < 4 else dtype
    compare(inputs((3, *shape), dtype, last), params(shape[1], len(shape), per_channel, wide), "arctan")


# One step, all steps in registers, states carried from part to part, a last part that is not full.
@pytest.mark.parametrize("steps", [1, 2, 16, 32, 33, 70])
@pytest.mark.parametrize("name", SURROGATES)
@pytest.mark.parametrize("fixed", [False, True])
def test_any_number_of_steps(steps, name, fixed):
    compare(inputs((steps, 2, 6, 5), torch.float64), params(6, 3, True, torch.float64), name, fixed)


COMPILED = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from ashnets.kernels import triton_lif as k

def check(kernel, types, constants):
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in constants.items()})
    made = triton.compile(source, target=GPUTarget("cuda", 80, 32), options={"enable_fp_fusion": False})
    assert made.asm["cubin"] and "fma." not in made.asm["ptx"], kernel

real = dict.fromkeys("keep_u keep_v v_th bias whole_u whole_v unit sums kept".split(), "*fp32")
for form in ("*fp32", "*bf16"):
    for last, one in ((False, {}), (True, {}), (True, {"outer": 1}), (False, {"steps": 1, "inner": 1, "channels": 1})):
        shape = {"LAST": last, "ROWS": 2, "COLS": 256} | one
        types = {**real, **dict.fromkeys("x s g gx".split(), form), "bits": "*u8"}
        chip = {**types, **dict.fromkeys("whole_u whole_v v_th bias kept".split(), "*i32")}
        check(k.forward, types, {"WHOLE": False, "BITS": True, "BYTE": 4, **shape})
        states = {**chip, "keep_u": "*i32", "keep_v": "*i32"}
        check(k.forward, states, {"WHOLE": True, "BITS": False, "BYTE": 4, **shape})
        check(k.backward_of_bits, types, {"BYTE": 4, **shape})
        for whole in (False, True):
            for surrogate in range(3):
                check(
                    k.backward,
                    chip if whole else types,
                    {"SURROGATE": surrogate, "PARAMETERS": True, "WHOLE": whole, "CHUNK": 4, **shape},
                )
"""


def test_they_compile_for_graphics_cards_and_nothing_is_fused():
    """Compiling needs no card."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", COMPILED], check=True, env=environment)
