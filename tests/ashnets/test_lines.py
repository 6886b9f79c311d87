"""What is written past the caches is what would be written to them; and kernels are compiled anew when they change."""

import shutil
from pathlib import Path

import numba
import numpy as np
import pytest
import torch

from ashnets.kernels import cpu, numba_lif
from ashnets.kernels.lines import cache_bytes, fetch, load, per_line, store, write_line
from ashnets.neurons import LIFParams, cuba_lif
from ashnets.surrogate import SURROGATES
from quantize.integer_lif import integer_cuba_lif

SHAPES = [(32, 16), (2, 16, 6, 4), (3, 64, 35, 20)]
"""Of a step: less columns than go past the caches at once, more, and several tiles of them for each thread."""
FORMS = [(form, dtype) for form in (*SURROGATES, "integers") for dtype in (torch.float32, torch.float64)]
FORMS += [("rectangle", torch.bfloat16), ("arctan", torch.float16)]


def layer(channels: int, rank: int, per_channel: bool, dtype: torch.dtype) -> LIFParams:
    values = torch.linspace(0.1, 0.6, channels).view(channels, *[1] * (rank - 2)).to(dtype)
    one = torch.tensor(0.3, dtype=dtype)
    return LIFParams(*((values, values + 0.2, values + 0.7) if per_channel else (one, one, one + 0.7)), values / 5)


def results(form, x, p, learned: bool) -> list[torch.Tensor]:
    """Spikes, and gradients of x, and of the parameters if they are learned."""
    leaves = [x.detach().requires_grad_(), *(value.clone().requires_grad_(learned) for value in p)]
    s = form(leaves[0], LIFParams(*leaves[1:]))
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x.dtype)
    return [s.detach(), *torch.autograd.grad((s * weight).sum(), [leaf for leaf in leaves if leaf.requires_grad])]


@pytest.mark.parametrize(("form", "dtype"), FORMS)
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_layer_past_the_caches_equals_one_that_they_hold(monkeypatch, shape, last, learned, form, dtype):
    p = layer(shape[1], len(shape), learned, torch.float64 if dtype == torch.float64 else torch.float32)

    def of_form(x, p):
        if form == "integers":
            return integer_cuba_lif(x, torch.tensor(2.0**-6, dtype=x.dtype), p, "arctan")
        return cuba_lif(x, p, form)

    for steps in (1, 4, 6, 11):
        x = torch.randn(steps, *shape)
        x = ((x * 50).round() if form == "integers" else x).to(dtype)
        if last:
            x = x.movedim(2, -1).contiguous().movedim(-1, 2)
        found = []
        for size, expected in ((1 << 60, False), (0, True)):
            monkeypatch.setattr(cpu, "_CACHE", size)
            assert cpu._past(x.float(), x[0].numel()) == expected
            found.append(results(of_form, x, p, learned))
        assert found[0][0].any()
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_rows_that_are_not_of_whole_lines_are_not_written_past_the_caches(monkeypatch):
    monkeypatch.setattr(cpu, "_CACHE", 0)
    assert cpu._past(torch.zeros(2, 1, 32), 32)
    assert not cpu._past(torch.zeros(2, 1, 24), 24)
    assert not cpu._past(torch.zeros(80)[8:72].view(2, 1, 32), 32)


def test_lines_at_an_address():
    @numba.njit
    def copy(source, to, last, like):
        for k in range(64):
            fetch(source, k + 1000, like)
            store(to, k, 1, load(source, k, 0, like))
        for k in range(0, 64, per_line(like)):
            write_line(last, k, to, k, like)

    for dtype in (np.int32, np.float32, np.float64):
        source, to, last = torch.randint(1, 100, (3, 64)).to(getattr(torch, np.dtype(dtype).name))
        copy(source.data_ptr(), to.numpy(), last.data_ptr(), dtype(0))
        assert torch.equal(to, source)
        assert torch.equal(last, source)


def test_the_size_of_the_largest_cache(tmp_path):
    for index, size in enumerate(["48K", "1024K", "16384K", "2M"]):
        (tmp_path / f"cache/index{index}").mkdir(parents=True)
        (tmp_path / f"cache/index{index}/size").write_text(f"{size}\n")
    assert cache_bytes(tmp_path) == 16 << 20
    assert cache_bytes(tmp_path / "none") == 32 << 20
    assert cache_bytes() >= 1 << 20


def test_kernels_are_kept_for_the_sources_that_they_are_made_of(tmp_path):
    """numba's key of what it kept has what a function encloses in it."""
    sources = Path(numba_lif.__file__).parent
    digest = numba_lif._digest(sources)
    for kernel in (numba_lif.forward, numba_lif.backward, numba_lif.backward_of_bits):
        assert digest in [cell.cell_contents for cell in kernel.py_func.__closure__]
    copy = shutil.copytree(sources, tmp_path / "kernels")
    assert numba_lif._digest(copy) == digest
    (copy / "recursion.py").write_text((copy / "recursion.py").read_text() + "\n")
    assert numba_lif._digest(copy) != digest
