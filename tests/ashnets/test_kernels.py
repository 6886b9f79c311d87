"""CUBA-LIF's kernels against the plain loop: spikes, each, and gradients."""

import concurrent.futures
import multiprocessing
import resource

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import types
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ashnets.kernels import lif, recursion
from ashnets.kernels.layout import dense
from ashnets.kernels.threads import on_team, team
from ashnets.neurons import CubaLIF, LIFParams, cuba_lif, cuba_lif_loop, cuba_lif_torch
from ashnets.surrogate import SURROGATES


def params(channels: int, rank: int, per_channel: bool, dtype: torch.dtype, decays=(0.3, 0.2)) -> LIFParams:
    """For steps [B, channels, ...] of `rank` dimensions; the bias is always one per channel."""
    shape = (channels, *[1] * (rank - 2))

    def made(value: float) -> torch.Tensor:
        one = torch.tensor(value, dtype=dtype)
        return (one * torch.linspace(0.5, 1, channels, dtype=dtype)).view(shape) if per_channel else one

    bias = torch.linspace(-0.2, 0.3, channels, dtype=dtype).view(shape)
    return LIFParams(made(decays[0]), made(decays[1]), made(1.0), bias)


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """x [T, B, C, ...], whose channels lie side by side."""
    return x.movedim(2, -1).contiguous().movedim(-1, 2)


def run(function, x, weight, p, name):
    """Spikes, and the gradients of x and of every parameter."""
    x, p = x.detach().clone().requires_grad_(), LIFParams(*(value.clone().requires_grad_() for value in p))
    s = function(x, p, name)
    (s * weight).sum().backward()
    return s, [x.grad, *(value.grad for value in p)]


def loop(x, p, name):
    return cuba_lif_loop(x, p, SURROGATES[name])


def compare(x, p, name, rtol=1e-9, atol=1e-11, fast=cuba_lif):
    weight = torch.randn(x.shape, dtype=x.dtype)
    (s, grads), (s_loop, grads_loop) = (run(function, x, weight, p, name) for function in (fast, loop))
    assert torch.equal(s, s_loop)
    assert s.stride() == torch.empty_like(dense(x)).stride()
    for ours, truth in zip(grads, grads_loop, strict=True):
        assert ours.shape == truth.shape
        assert ours.dtype == truth.dtype
        assert torch.allclose(ours, truth, rtol=rtol, atol=atol)


@pytest.mark.parametrize("fast", [cuba_lif, cuba_lif_torch])
@pytest.mark.parametrize("name", SURROGATES)
@given(
    steps=st.integers(1, 7),
    decays=st.tuples(st.floats(0.01, 1.0), st.floats(0.01, 1.0)),
    seed=st.integers(0, 2**31),
    per_channel=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_the_fast_forms_equal_the_plain_loop_in_spikes_and_gradients(fast, name, steps, decays, seed, per_channel):
    torch.manual_seed(seed)
    x, p = torch.randn(steps, 3, 5, dtype=torch.float64), params(5, 2, per_channel, torch.float64, decays)
    compare(x, p, name, fast=fast)


# The last has more columns than a tile and than a group of tiles; none is a multiple of a vector.
SHAPES = [(1, 1), (3, 5), (2, 3, 7), (2, 3, 5, 9), (3, 70, 31, 33), (1, 3, 1, 1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("layout", ["channels first", "channels last", "with gaps"])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_shape_and_layout(shape, per_channel, layout, dtype):
    x = torch.randn(4, *shape, dtype=dtype)
    if layout == "channels last":
        x = channels_last(x)
    elif layout == "with gaps":
        x = torch.stack([x, x], -1)[..., 0]
    p = params(shape[1], len(shape), per_channel, dtype)
    rtol, atol = (1e-9, 1e-11) if dtype == torch.float64 else (1e-4, 1e-2)  # sums over 10,000 columns
    compare(x, p, "arctan", rtol, atol)


@pytest.mark.parametrize("name", ["rectangle", "arctan"])
@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("shape", [(2, 3, 7), *SHAPES[3:], (2, 64, 50, 3)], ids=str)
@pytest.mark.parametrize("steps", [1, 6])
def test_a_gradient_may_lie_otherwise_than_x(steps, shape, last, name):
    """As that of a mean over pixels does, or of a flattening."""
    x, g = torch.randn(2, steps, *shape)
    layouts = {False: g, True: channels_last(g), None: torch.stack([g, g], -1)[..., 0]}
    x = (channels_last(x) if last else x).requires_grad_()
    p = LIFParams(*(value.requires_grad_(name == "arctan") for value in params(shape[1], len(shape), True, x.dtype)))
    leaves = [x, *p] if name == "arctan" else [x]
    expected, *found = (torch.autograd.grad(cuba_lif(x, p, name), leaves, layouts[k]) for k in (last, not last, None))
    for grads in found:
        assert all(torch.equal(a, b) for a, b in zip(grads, expected, strict=True))
    assert expected[0].any() or x.numel() < 10


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("steps", [1, 3, 4, 5, 40])
def test_the_rectangle_of_fixed_parameters_saves_two_bits_and_not_x(steps, per_channel, last):
    x = torch.randn(steps, 2, 6, 3, 5, dtype=torch.float64)
    x = channels_last(x) if last else x
    p, weight, saved = params(6, 4, per_channel, torch.float64), torch.randn(x.shape, dtype=x.dtype), []
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        s = cuba_lif(leaves[0], p, "rectangle")
    s_loop = loop(leaves[1], p, "rectangle")
    for spikes in (s, s_loop):
        (spikes * weight).sum().backward()
    assert torch.equal(s, s_loop)
    assert torch.allclose(leaves[0].grad, leaves[1].grad, rtol=1e-12, atol=1e-14)
    assert leaves[0].grad.any()
    held = {t.data_ptr(): t.nbytes for t in saved if t.data_ptr() != s.data_ptr()}
    assert leaves[0].data_ptr() not in held
    assert sum(held.values()) <= -(-steps // 4) * x[0].numel() + 8 * sum(value.numel() for value in p)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_inputs_of_16_bits_have_states_of_32(dtype):
    x = torch.randn(6, 3, 50).to(dtype)
    p = params(50, 2, False, torch.float32)
    s, grads = run(cuba_lif, x, torch.ones_like(x), p, "arctan")
    s_wide, grads_wide = run(cuba_lif, x.float(), torch.ones(x.shape), p, "arctan")
    assert s.dtype == grads[0].dtype == dtype
    assert torch.equal(s.float(), s_wide)
    assert torch.equal(grads[0], grads_wide[0].to(dtype))
    for narrow, wide in zip(grads[1:], grads_wide[1:], strict=True):
        assert torch.equal(narrow, wide)


@pytest.mark.parametrize("name", SURROGATES)
def test_every_surrogate_has_a_kernel(name):
    assert name in recursion.SLOPES


def test_the_number_of_threads_changes_no_bit():
    x, p = torch.randn(4, 3, 70, 31, 33), params(70, 4, True, torch.float32)
    weight, threads = torch.randn(x.shape), torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(run(cuba_lif, x, weight, p, "arctan"))
    finally:
        torch.set_num_threads(threads)
    for s, grads in results[1:]:
        assert torch.equal(s, results[0][0])
        assert all(torch.equal(a, b) for a, b in zip(grads, results[0][1], strict=True))


def test_threads_that_train_at_once_do_not_disturb_each_other():
    x, p = torch.randn(4, 3, 70, 31, 33), params(70, 4, True, torch.float32)
    weight = torch.randn(x.shape)
    expected = run(cuba_lif, x, weight, p, "arctan")[1]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(run, cuba_lif, x, weight, p, "arctan") for _ in range(8)]:
            assert all(torch.equal(a, b) for a, b in zip(future.result()[1], expected, strict=True))


_this_thread = types.ExternalFunction("pthread_self", types.uint64())
_pause = types.ExternalFunction("usleep", types.int32(types.uint32))


@numba.njit(nogil=True)
def _count(share, done, by):
    by[share] = _this_thread()
    done[share] += 1


@numba.njit(nogil=True)
def _meet(share, done, by):
    _count(share, done, by)
    for _ in range(60_000):  # a minute
        if done.all():
            return
        _pause(1000)


@numba.njit(nogil=True)
def _fail(share, done, by):
    if share % 3 == 0:
        raise ValueError
    _count(share, done, by)


@numba.njit(nogil=True)
def _by_team(team, threads, shares, job, done, by):
    return on_team(team, threads, shares, job, (done, by))


def shares_done(job, shares: int, threads: int = 2) -> tuple[int, list[int], list[int]]:
    """How many failed, how often each was done, and the threads that did them."""
    done, by = np.zeros(shares, np.int64), np.zeros(shares, np.uint64)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        return _by_team(*team(shares), job, done, by), done.tolist(), by.tolist()
    finally:
        torch.set_num_threads(before)


def _put_shares(queue) -> None:
    queue.put(shares_done(_count, 9))


@pytest.mark.parametrize(("shares", "threads"), [(1, 2), (2, 1), (9, 2), (9, 20), (0, 2)])
def test_each_share_is_done_once(shares, threads):
    assert shares_done(_count, shares, threads)[:2] == (0, [1] * shares)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_does_without_its_parents_threads():
    shares_done(_count, 9)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_put_shares, args=(queue,))
    child.start()
    try:
        failed, done, by = queue.get(timeout=60)
    finally:
        child.kill()
        child.join()
    assert (failed, done, len(set(by))) == (0, [1] * 9, 1)


def test_shares_run_on_threads_of_their_own_at_once():
    failed, done, by = shares_done(_meet, 2)
    assert (failed, done, len(set(by))) == (0, [1, 1], 2)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_share_that_fails_is_counted_and_the_others_are_done(threads):
    assert shares_done(_fail, 7, threads)[:2] == (3, [0, 1, 1, 0, 1, 1, 0])


def test_states_that_memory_does_not_hold_fail_the_call():
    x, p = torch.zeros(2**21, 1, 1), params(1, 2, False, torch.float32)  # whose states take 18 GB
    before = resource.getrlimit(resource.RLIMIT_AS)
    s = cuba_lif(x.requires_grad_(), p, "arctan")
    try:
        resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30, before[1]))
        with pytest.raises(MemoryError, match="states of 2097152 steps"):
            s.sum().backward()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_what_is_not_finite_stays_where_it_is():
    x = torch.randn(5, 2, 6)
    x[1, 0, 2], x[2, 1, 3] = torch.nan, torch.inf
    p = params(6, 2, False, torch.float32)
    assert torch.equal(cuba_lif(x, p, "arctan"), loop(x, p, "arctan"))


@pytest.mark.parametrize("channels", [3, 5])
@pytest.mark.parametrize("shape", [(4, 2, 4), (4, 2, 4, 3)], ids=str)
def test_neurons_for_another_number_of_channels_are_refused(shape, channels):
    """The kernels index without a look: they would wrap around, or write behind the sums."""
    x, one, wrong = torch.randn(shape), torch.full((1,), 0.5), torch.zeros(channels)
    told = f"{channels} values, and the input .* 4 channels"
    with pytest.raises(ValueError, match=told):
        lif.lif_forward(x, one, one, one, wrong, "arctan", False)
    with pytest.raises(ValueError, match=told):
        lif.lif_backward(x, x, torch.empty(0), one, one, one, wrong, "arctan", True, [], None)
    with pytest.raises(ValueError, match=told):
        CubaLIF(channels)(x)


def test_no_samples_give_no_spikes():
    x = torch.randn(5, 0, 6, requires_grad=True)
    cuba_lif(x, params(6, 2, False, torch.float32), "arctan").sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape


def arguments(dtype=torch.float32, **changes):
    x = torch.randn(3, 2, 4, 5, 5, dtype=dtype, requires_grad=True)
    decay_u, decay_v, v_th = (torch.tensor([value], dtype=dtype, requires_grad=True) for value in (0.4, 0.2, 1.0))
    bias = torch.linspace(-0.1, 0.1, 4, dtype=dtype, requires_grad=True)
    return tuple(({"x": x, "decay_u": decay_u, "decay_v": decay_v, "v_th": v_th, "bias": bias} | changes).values())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own check
def test_torch_knows_the_operator():
    torch.library.opcheck(lif.lif_forward, (*arguments(), "arctan", False))
    last = torch.randn(3, 2, 5, 5, 4).movedim(-1, 2).requires_grad_()
    torch.library.opcheck(lif.lif_forward, (*arguments(x=last), "rectangle", True))
    x, *rest = (a.detach() for a in arguments())
    torch.library.opcheck(
        lif.lif_backward,
        (torch.randn(3, 2, 4, 5, 5), x, torch.empty(0, dtype=torch.uint8), *rest, "arctan", True, [], None),
    )


def test_whoever_looks_at_operators_sees_it():
    """Where nobody does, the kernels are called without the dispatcher, and do the same."""

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.add(func.name())
            return func(*args, **(kwargs or {}))

    def passes():
        s = lif.cuba_lif(*ours, "arctan")
        return s, *torch.autograd.grad(s.square().sum(), ours)

    names, ours = set(), arguments()
    with Seen():
        seen = passes()
    assert {"ashnets::cuba_lif", "ashnets::cuba_lif_backward"} <= names
    assert all(torch.equal(a, b) for a, b in zip(seen, passes(), strict=True))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert isinstance(lif.cuba_lif(mode.from_tensor(ours[0]), *ours[1:], "arctan"), FakeTensor)


def test_zeros_without_memory_are_a_gradient():
    ours = arguments()
    nothing = torch._efficientzerotensor(ours[0].shape)
    grads = torch.autograd.grad(lif.cuba_lif(*ours, "arctan"), ours, nothing)
    assert not any(grad.any() for grad in grads)


def test_a_second_gradient_is_refused():
    ours = arguments()
    (grad,) = torch.autograd.grad(lif.cuba_lif(*ours, "arctan").square().sum(), ours[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_under_autocast_spikes_have_the_type_of_their_inputs():
    convolution, p = torch.nn.Conv2d(3, 4, 3), params(4, 4, False, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        x = convolution(torch.randn(10, 3, 8, 8)).unflatten(0, (5, 2))
        s = cuba_lif(x, p, "arctan")
    assert x.dtype == s.dtype == torch.bfloat16
    assert torch.equal(s.float(), loop(x.float(), p, "arctan"))
    s.sum().backward()
    assert convolution.weight.grad.any()


def test_torch_compile_takes_it_whole():
    def around(x, decay_u, decay_v, v_th, bias):
        return lif.cuba_lif(2 * x, decay_u, decay_v, v_th, bias, "arctan").mean(0) + 1

    ours = arguments()
    compiled = torch.compile(around, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*ours), around(*ours))
    grads = [torch.autograd.grad(f(*ours).square().sum(), ours) for f in (compiled, around)]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_gradients_are_those_of_the_recursion_where_nothing_spikes():
    """Within the rectangle, whose slope is one, s stands for v - v_th, whose gradient torch takes numerically."""
    x = 0.002 * torch.randn(4, 2, 3, dtype=torch.float64)
    p = params(3, 2, True, torch.float64)
    p = p._replace(bias=torch.zeros(3, dtype=torch.float64), v_th=torch.full((3,), 0.45, dtype=torch.float64))

    def v_sum(x, *values):
        q = LIFParams(*values)
        u = v = torch.zeros_like(x[0])
        total = 0.0
        for x_t in x:
            u = (1 - q.decay_u) * u + x_t
            v = (1 - q.decay_v) * v + u + q.bias
            total = total + (v - q.v_th)
        return total.sum()

    leaves = [value.clone().requires_grad_() for value in (x, *p)]
    assert cuba_lif(x, p, "rectangle").sum() == 0
    assert torch.autograd.gradcheck(v_sum, leaves)
    expected = torch.autograd.grad(v_sum(*leaves), leaves)
    found = torch.autograd.grad(cuba_lif(leaves[0], LIFParams(*leaves[1:]), "rectangle").sum(), leaves)
    for ours, truth in zip(found, expected, strict=True):
        assert torch.allclose(ours, truth, rtol=1e-10)
