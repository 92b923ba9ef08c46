"""The CUDA kernels: on a GPU where there is one, and on the CPU in Triton's interpreter, in a process of its own."""

import contextlib
import functools
import importlib.util
import itertools
import math
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch

import gradclip
from gradclip.backends import torch as backend

INF, NAN = math.inf, math.nan
ROOT = Path(__file__).resolve().parent.parent
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
REALS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
DTYPES = [*REALS, torch.complex64, torch.complex128]
WIDE = (torch.float64, torch.complex128)
EPS = {torch.float16: 1e-3, torch.bfloat16: 8e-3}  # rounding of one element; 1e-6 for the others
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of an infinite number in the interpreter
gpu = pytest.mark.gpu  # the interpreter is run without conftest.py, which would leave these out


def only_gpu(test):
    return gpu(pytest.mark.skipif(INTERPRETED, reason="needs a GPU")(test))


def only_interpreted(test):
    return pytest.mark.skipif(not INTERPRETED, reason="stands in for a GPU")(test)


@pytest.mark.skipif(INTERPRETED, reason="is what runs this")
@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU itself runs what is below")
@pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="needs Triton")
def test_all_below_in_triton_s_interpreter():
    path = filter(None, [os.environ.get("TRITON_AT"), str(ROOT)])  # see test_kernel_matrix.py
    # Old versions of Triton call NumPy in deprecated ways.
    options = ["-q", "--noconftest", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore::DeprecationWarning"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, __file__],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(path)},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout


@pytest.fixture
def kernels(monkeypatch):
    """The module, used for the CPU too where it is interpreted; there, with blocks small enough for small arrays."""
    module = pytest.importorskip("gradclip.backends.triton_kernels")
    if INTERPRETED:
        monkeypatch.setattr(backend, "_kernels", lambda arrays: module if arrays else None)
        for name, size in {"LANES": 16, "STEP": 256, "CHUNK": 1024}.items():  # a 64th of what they are
            monkeypatch.setattr(module, name, size)
    module._TABLES.clear()
    return module


@pytest.fixture
def taken(kernels, monkeypatch):
    """What the kernels have answered: whether they did the work."""
    answers = []

    def noting(function, *arguments):
        answer = function(*arguments)
        answers.append(bool(answer))
        return answer

    for name in ("measure", "scale_"):
        monkeypatch.setattr(kernels, name, functools.partial(noting, getattr(kernels, name)))
    return answers


def tensor(values, dtype=torch.float32):
    return torch.tensor(np.asarray(values), device=DEVICE).to(dtype)


def exact(x):
    return x.detach().cpu().to(torch.complex128 if x.is_complex() else torch.float64, copy=True).numpy()


def bits(x):
    return exact(x).tobytes()


def sample(dtype, *shapes, seed=0):
    rng = np.random.default_rng(seed)
    raw = [rng.standard_normal(s) + 1j * rng.standard_normal(s) for s in shapes]
    return [tensor(r if dtype.is_complex else r.real, dtype) for r in raw]


def holds(arrays, c, **options):
    """Clips in place, and compares with the oracle."""
    before = [exact(a) for a in arrays]
    n = oracle.norm(before)
    norm = gradclip.clip_by_global_norm_(arrays, c, **options)
    assert norm.shape == ()
    assert norm.dtype == (torch.float64 if any(a.dtype in WIDE for a in arrays) else torch.float32)
    np.testing.assert_allclose(float(norm), n, rtol=1e-14 if all(a.dtype in WIDE for a in arrays) else 1e-6)
    for a, was, want in zip(arrays, before, oracle.clip_by_global_norm(before, float(c)), strict=True):
        if n <= float(c):
            assert bits(a) == was.tobytes()
        np.testing.assert_allclose(exact(a), want, rtol=EPS.get(a.dtype, 1e-6), atol=1e-7 * (a.dtype == torch.float16))
    return norm


@gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_sizes_round_those_of_a_step_and_of_a_chunk(kernels, taken, dtype):
    bytes_each = dtype.itemsize
    sizes = {0, 1, 2, 7}
    for whole in (16, kernels.LANES * bytes_each, kernels.STEP, kernels.CHUNK, 3 * kernels.CHUNK):
        sizes |= {whole // bytes_each + more for more in (-1, 0, 1)}
    for size in sorted(sizes):
        (g,) = sample(dtype, (size,))
        n = oracle.norm([exact(g)])
        for c in (2 * n, n / 3):
            holds([g], c)
    assert all(taken[4:])  # there is nothing to launch for an empty array


@gpu
@pytest.mark.parametrize("dtype", REALS)
def test_arrays_that_begin_anywhere_and_their_neighbours(kernels, taken, dtype):
    (whole,) = sample(dtype, (3000,))
    before = exact(whole)
    views = [whole[1:1500], whole[1501:1503], whole[1507:2999]]
    holds(views, 1.0)
    for i in (0, 1500, 1503, 1506, 2999):
        assert exact(whole)[i] == before[i]
    assert all(taken)


@gpu
def test_many_tiny_arrays_of_all_dtypes(kernels, taken):
    arrays = [a for dtype in DTYPES for a in sample(dtype, *[(1 + i % 5,) for i in range(40)])]
    holds(arrays, 1e9)
    holds(arrays, 2.0)
    assert all(taken)
    assert len(kernels._TABLES) == 1


@gpu
def test_shapes_and_orders_in_memory(kernels, taken):
    (g,) = sample(torch.float32, (6, 5, 4))
    for dense in (
        g,
        g.permute(2, 1, 0),
        g.permute(1, 0, 2),
        g[:3],
        g[2],
        g[1, 1, 1],
        g.permute(2, 0, 1)[:, :, :, None],
    ):
        holds([dense], 0.5)
    assert all(taken)


@gpu
def test_where_there_are_gaps_pytorch_does_the_work(kernels, taken):
    whole, other = sample(torch.float32, (40, 50), (30,))
    before = exact(whole)
    holds([whole[:, ::3], other], 2.0)
    assert not any(taken)
    np.testing.assert_array_equal(exact(whole)[:, 1::3], before[:, 1::3])
    rows = tensor([[1.0, 2.0], [3.0, 4.0], [-1.0, 0.5]])
    sparse = torch.sparse_coo_tensor([[2, 0, 2]], rows, (4, 2), device=DEVICE, check_invariants=True)
    dense = exact(sparse.to_dense())
    n = oracle.norm([dense, exact(other)])
    assert float(gradclip.clip_by_global_norm_([sparse, other], 1.0)) == pytest.approx(n, rel=1e-6)
    np.testing.assert_allclose(exact(sparse.to_dense()), dense / n, rtol=1e-6)


@gpu
def test_one_array_listed_twice_is_counted_and_scaled_once(kernels):
    g = tensor([3.0, 4.0])
    assert float(gradclip.clip_by_global_norm_([g, g], 1.0)) == 5.0
    np.testing.assert_allclose(exact(g), [0.6, 0.8], rtol=1e-6)


@gpu
@pytest.mark.parametrize(
    ("raw", "dtype"),
    [
        ([1e20, -2e20, 3.0], torch.float32),
        ([1e-30, 1e-30], torch.float32),
        ([40000.0] * 4, torch.float16),
        ([1e30, 1e30], torch.bfloat16),
        ([1e30 + 2e30j, 1e30], torch.complex64),
        ([1e200, -3e200], torch.float64),
        ([1e-200, 3e-200], torch.float64),
        ([1e-320, 3e-320], torch.float64),
        ([1e200, 1.0, 1e-200], torch.float64),
        ([1.5e-154, 1.4e-154, 1e-155], torch.float64),  # on both sides of the smallest that is squared as it is
        ([1e145, 1e147, 1e146], torch.float64),  # and of the largest
        ([1e154] * 50, torch.float64),
    ],
)
def test_norms_whose_squares_do_not_fit(kernels, taken, raw, dtype):
    g = tensor(raw, dtype)
    before = exact(g)
    n = oracle.norm([before])
    norm = gradclip.clip_by_global_norm_(g, n / 4)
    np.testing.assert_allclose(float(norm), n, rtol=1e-14 if dtype in WIDE else 1e-6)
    np.testing.assert_allclose(exact(g), before / 4, rtol=EPS.get(dtype, 1e-6), atol=5e-324)
    assert all(taken)


# What each place of a chunk is filled with: some need another unit than 1 to be squared in float32, some do not.
FILLS = {
    "ones": lambda x, _: 1.0,
    "zeros": lambda x, _: 0.0,
    "squares too large": lambda x, _: 2e19,
    "too large once all are summed": lambda x, _: 8e18,
    "squares too small": lambda x, _: 1e-23,
    "subnormal": lambda x, _: 1e-40,
    "the smallest": lambda x, largest: 1.5e-45 if largest > 1e5 else 6e-8,
    "the largest": lambda x, largest: largest,
    "one of the largest among ones": lambda x, largest: np.where(x == 77, largest, 1.0),
    "one small among zeros": lambda x, _: np.where(x == 77, 1e-22, 0.0),
    "one after the other": lambda x, _: np.where(x % 2, 2e19, 1e-23),
    "one after the other, small": lambda x, _: np.where(x % 3, 3e-10, 1e-30),
}
ROUNDED = 5.75e-7  # what float32 sums may be off by: sum_squares says why


def filled(kernels, dtype, names):
    """An array that has a chunk of each filling."""
    real = dtype.to_real()
    places = np.arange(kernels.CHUNK // real.itemsize)
    largest = torch.finfo(real).max / 64  # so that the norm of a chunk fits the dtype of the norm
    whole = np.concatenate([np.broadcast_to(FILLS[name](places, largest), places.shape) for name in names])
    whole = np.where(np.arange(len(whole)) % 5 < 2, -1, 1) * np.minimum(whole, largest)
    x = torch.tensor(whole).to(real).to(DEVICE)
    if INTERPRETED and real == torch.bfloat16:  # whose subnormal numbers the interpreter takes for zeros
        x = torch.where((x != 0) & (x.abs() < 2.0**-126), 2.0**-126, x)
    return torch.view_as_complex(x.view(-1, 2)) if dtype.is_complex else x


@gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FILLS)
def test_chunks_that_are_taken_again_beside_chunks_that_are_not(kernels, taken, name, dtype):
    for names in (  # of three programs, each takes every third
        [name],
        [name, "the smallest", "zeros", "one small among zeros", name, name],
        ["ones", "squares too large", name, name, "zeros", name],
    ):
        g = filled(kernels, dtype, names)
        before = exact(g)
        n = oracle.norm([before])
        c = max(n / 4, 1e-37)  # what is clipped to less is subnormal
        norms = [gradclip.global_norm(g), gradclip.clip_by_global_norm_(g, c)]
        assert bits(norms[0]) == bits(norms[1])
        subnormal = torch.finfo(norms[0].dtype).smallest_normal * torch.finfo(norms[0].dtype).eps
        for norm in norms:
            assert float(norm) == pytest.approx(n, rel=1e-14 if dtype in WIDE else ROUNDED, abs=subnormal)
        np.testing.assert_allclose(
            exact(g), before * min(1, c / n), rtol=EPS.get(dtype, 1e-6), atol=torch.finfo(dtype).tiny
        )
    assert all(taken)


@gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_numbers_that_are_all_alike_are_rounded_all_alike(kernels, dtype):
    worst = 0.0
    for x in np.random.default_rng(0).uniform(1, 2, 20):
        g = torch.full((kernels.CHUNK // dtype.itemsize,), x, dtype=dtype, device=DEVICE)
        n = float(g[0]) * math.sqrt(len(g))
        worst = max(worst, abs(float(gradclip.global_norm(g)) / n - 1))
    assert 2e-8 < worst <= ROUNDED


@only_interpreted  # with as many programs as a GPU has, there would be gigabytes
def test_the_sums_of_chunks_are_added_in_float64(kernels, taken):
    ones = torch.ones(3 * kernels.CHUNK // 4)  # a chunk for each program
    # Squares of 2⁻²⁴: a place's sum of these is half of the last digit that a float32 has for the place's sum of ones.
    g = torch.cat([ones, *30 * [ones * 2.0**-12]])
    assert float(gradclip.global_norm(g)) == pytest.approx(oracle.norm([exact(g)]), rel=ROUNDED)
    assert all(taken)


@gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("beside", ["ones", "squares too large", "squares too small"])
def test_what_is_not_finite_is_found_wherever_it_is(kernels, taken, beside, dtype):
    whole = filled(kernels, dtype, [beside] * 3)[:-3]
    of_a_step, of_a_chunk = kernels.STEP // dtype.itemsize, kernels.CHUNK // dtype.itemsize
    kinds = itertools.cycle([(INF, INF), (NAN, NAN), (-INF, INF)])
    for begin in (0, 1):  # aligned, or with a first chunk of its own, of less than 16 bytes
        g = whole[begin:]
        for at in (0, 20, of_a_step - 1, of_a_step, of_a_chunk, 2 * of_a_chunk + 9, -20, -1):
            was, (bad, want) = g[at].clone(), next(kinds)
            g[at] = bad
            np.testing.assert_equal(float(gradclip.global_norm(g)), want)
            g[at] = was
        assert math.isfinite(gradclip.global_norm(g))
    whole[3], whole[-5] = INF, NAN
    assert math.isnan(gradclip.global_norm(whole))
    assert all(taken)


@gpu
@pytest.mark.parametrize(
    ("largest", "dtype"), [(3e38, torch.float32), (1.5e308, torch.float64), (3e38, torch.bfloat16)]
)
def test_the_direction_where_even_the_norm_does_not_fit(kernels, taken, largest, dtype):
    for policy, c in itertools.product(("nan", "zero", "keep", "raise"), (1.0, 0.7, 1e-6, 0.0)):
        g = tensor([largest, -largest, largest / 2, 0.0], dtype)
        unit = exact(g) / largest
        assert float(gradclip.clip_by_global_norm_(g, c, nonfinite=policy)) == INF
        np.testing.assert_allclose(exact(g), unit / oracle.norm([unit]) * c, rtol=EPS.get(dtype, 1e-6))
    assert all(taken)


@gpu
def test_at_the_norm_itself_nothing_changes(kernels, taken):
    for dtype in DTYPES:
        for seed in range(5):
            (g,) = sample(dtype, (70,), seed=seed)
            before = bits(g)
            n = gradclip.global_norm(g)
            as_near = [] if dtype in WIDE else [float(n) * (1 - 1e-9)]  # the same in the dtype of the norm
            for c in (n, float(n), INF, 1e300, *as_near):
                gradclip.clip_by_global_norm_(g, c)
                assert bits(g) == before
    below = float(np.nextafter(np.float32(5), np.float32(0)))
    g = tensor([3.0, 4.0])
    gradclip.clip_by_global_norm_(g, below)
    assert oracle.norm([exact(g)]) <= below * (1 + 1e-6)
    assert all(taken)


@gpu
@pytest.mark.parametrize("on_device", [False, True])
def test_thresholds(kernels, taken, on_device):
    def threshold(c, dtype=torch.float64):
        return torch.tensor(c, dtype=dtype, device=DEVICE) if on_device else c

    for raw in ([3.0, -4.0], [0.0, 0.0], [3e38, 3e38], [1e-30, 0.0]):
        g = tensor(raw)
        gradclip.clip_by_global_norm_(g, threshold(0.0))
        assert (exact(g) == 0).all()
    for raw in ([3.0, 4.0], [INF, 1.0], [NAN, 1.0], [3e38, 3e38]):
        for policy in ("nan", "zero", "keep"):
            g = tensor(raw)
            gradclip.clip_by_global_norm_(g, threshold(INF), nonfinite=policy)
            np.testing.assert_array_equal(exact(g), exact(tensor(raw)))
    g = tensor([3.0, 4.0], torch.float64)
    gradclip.clip_by_global_norm_(g, threshold(0.1))
    np.testing.assert_allclose(exact(g), [0.06, 0.08], rtol=1e-15)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.int64):
        g = tensor([3.0, 4.0])
        gradclip.clip_by_global_norm_(g, threshold(1, dtype))
        np.testing.assert_allclose(exact(g), [0.6, 0.8], rtol=1e-6)
    assert all(taken)


@gpu
def test_a_bad_threshold_that_the_device_alone_knows(kernels, monkeypatch):
    monkeypatch.setattr(backend, "host_value", lambda x: None)
    monkeypatch.setattr(backend, "_on_host", lambda arrays: False)
    for bad, policy in itertools.product((-1.0, NAN, -INF), ("nan", "zero", "keep")):
        for raw in ([3.0, 4.0], [0.0, 0.0], [INF, 1.0]):
            c = torch.tensor(bad, device=DEVICE)
            g = tensor(raw)
            gradclip.clip_by_global_norm_(g, c, nonfinite=policy)
            want = gradclip.clip_by_global_norm(tensor(raw), c, nonfinite=policy).grads  # without kernels
            np.testing.assert_array_equal(exact(g), exact(want))


@gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [INF, -INF, NAN])
def test_non_finite_gradients(kernels, taken, dtype, bad):
    for policy, want in (("nan", NAN), ("zero", 0.0), ("keep", None), ("raise", None)):
        for at in (0, 299):
            g, other = sample(dtype, (300,), (5,))
            g[at] = bad
            before = [bits(g), bits(other)]
            if policy == "raise":
                with pytest.raises(gradclip.NonFiniteGradientError, match=r"grads\[0\];"):
                    gradclip.clip_by_global_norm_([g, other], 1.0, nonfinite=policy)
            else:
                norm = gradclip.clip_by_global_norm_([g, other], 1.0, nonfinite=policy)
                np.testing.assert_equal(float(norm), abs(bad))
            if want is None:
                assert [bits(g), bits(other)] == before
            else:
                for x in (g, other):
                    np.testing.assert_array_equal(exact(x).real, np.full(x.shape, want))
    for order in itertools.permutations([1.0, INF, NAN]):
        assert math.isnan(gradclip.global_norm(tensor(order, dtype)))
    assert all(taken)


@gpu
def test_a_given_norm(kernels, taken):
    for norm in (10.0, torch.tensor(10.0), torch.tensor(10.0, device=DEVICE), torch.tensor([1.0, 10.0])[1].to(DEVICE)):
        g = tensor([3.0, 4.0])
        assert float(gradclip.clip_by_global_norm_(g, 5.0, norm=norm)) == 10.0
        np.testing.assert_allclose(exact(g), [1.5, 2.0], rtol=1e-6)
    gradclip.clip_by_global_norm_(g, 1.0, norm=0.5)
    np.testing.assert_allclose(exact(g), [1.5, 2.0], rtol=1e-6)
    gradclip.clip_by_global_norm_(g, 1.0, norm=NAN)
    assert np.isnan(exact(g)).all()
    assert all(taken)


@gpu
def test_each_array_by_its_own_norm(kernels, taken):
    arrays = sample(torch.float32, (7, 5), (3,), ())
    before = [exact(a) for a in arrays]
    gradclip.clip_by_norm_(arrays, 0.5)
    for a, was in zip(arrays, before, strict=True):
        np.testing.assert_allclose(exact(a), oracle.clip_by_norm(was, 0.5), rtol=1e-6)
    assert all(taken)


@gpu
def test_kernels_and_pytorch_s_operations_agree(kernels):
    for dtype, c in itertools.product(DTYPES, (1e-3, 1.0, 7.0, 1e3)):
        arrays = sample(dtype, (30, 7), (11,))
        by_kernels = [a.clone() for a in arrays]
        norm = gradclip.clip_by_global_norm_(by_kernels, c)
        want, norm_too = gradclip.clip_by_global_norm([a.cpu() for a in arrays], c)
        np.testing.assert_allclose(float(norm), float(norm_too), rtol=1e-6)
        for a, b in zip(by_kernels, want, strict=True):
            np.testing.assert_allclose(exact(a), exact(b), rtol=EPS.get(dtype, 1e-6))


@gpu
def test_autograd_sees_that_something_may_have_been_written(kernels, taken):
    w = tensor([1.0, 2.0]).requires_grad_()
    g = tensor([3.0, 4.0])
    loss = (w * g).sum()  # keeps g for the derivative
    gradclip.clip_by_global_norm_(g, 1.0)
    assert all(taken)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@gpu
def test_a_table_is_built_once_and_never_out_of_date(kernels, monkeypatch):
    built = []
    rows = kernels._rows
    monkeypatch.setattr(kernels, "_rows", lambda places: built.append(places) or rows(places))
    g = tensor(np.full(100, 2.0))
    for _ in range(3):
        gradclip.clip_by_global_norm_([g[:50], g[50:]], 1e9)
    assert len(built) == 1
    assert float(gradclip.clip_by_global_norm_([g[:50], g[50:75]], 1e9)) == pytest.approx(2 * math.sqrt(75))
    assert float(gradclip.clip_by_global_norm_([g.view(torch.float16)[:0], g], 1e9)) == pytest.approx(20)
    assert float(gradclip.clip_by_global_norm_([g.view(torch.float64)], 1e9)) != 20
    for i in range(2 * kernels._MOST):
        gradclip.clip_by_global_norm_([g[i:]], 1e9)
    assert len(kernels._TABLES) == kernels._MOST


@gpu
def test_rows_cover_every_byte_once(kernels, monkeypatch):
    monkeypatch.setattr(kernels, "CHUNK", 1 << 16)
    rng = np.random.default_rng(0)
    places, address = [], 1 << 40
    for _ in range(50):
        dtype = DTYPES[rng.integers(6)]
        n = int(rng.choice([0, 1, 3, 1000, 10**5, 3 * 10**9]))
        address += dtype.itemsize - address % dtype.itemsize
        places.append((address, n, dtype))
        address += n * dtype.itemsize
    rows, _ = kernels._rows(places)
    sizes = np.array([2, 2, 4, 8])[rows[1] & 3]
    lengths = (rows[1] >> 2) * sizes
    assert (lengths > 0).all()
    assert lengths.max() <= kernels.CHUNK
    assert ((rows[0] % 16 == 0) | (lengths < 16)).all()
    begins = {begin for begin, n, _ in places if n}
    follows = rows[0][1:] == rows[0][:-1] + lengths[:-1]
    assert all(follow or address in begins for follow, address in zip(follows, rows[0][1:].tolist(), strict=True))
    assert lengths.sum() == sum(n * dtype.itemsize for _, n, dtype in places)


# A GPU that is not there ---------------------------------------------------------------------------------------------


@pytest.fixture
def gpu_stub(kernels, monkeypatch):
    """PyTorch as it answers where there is a GPU, for kernels that are interpreted; what a test may change."""
    about = types.SimpleNamespace(stream=1, capturing=False, warp_size=32, multi_processor_count=1)
    monkeypatch.setattr(kernels, "_is_gpu", lambda device: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: about.capturing)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: types.SimpleNamespace(cuda_stream=about.stream))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: about)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: x.clone())
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, pin_memory=False, **options: empty(*shape, **options))
    for its in (kernels._RUN, kernels._SPARE, kernels._CAPTURED, kernels._TABLES):
        its.clear()
    for its in (kernels._programs, kernels._options):
        its.cache_clear()
    yield about
    for its in (kernels._programs, kernels._options):
        its.cache_clear()
    for its in (kernels._RUN, kernels._SPARE, kernels._CAPTURED, kernels._TABLES):
        its.clear()


@only_interpreted
def test_each_stream_has_a_table_of_its_own(kernels, gpu_stub, taken):
    g = tensor([3.0, 4.0])
    for stream in (1, 2, 1):
        gpu_stub.stream = stream
        assert float(gradclip.global_norm(g)) == 5.0
    assert [key[1] for key in kernels._TABLES] == [2, 1]  # the last used comes last
    assert all(taken)


@only_interpreted
def test_a_graph_takes_what_a_call_before_it_has_set_aside(kernels, gpu_stub, taken):
    g = tensor(np.full(1000, 2.0))
    gpu_stub.capturing = True
    assert float(gradclip.clip_by_global_norm_(g, 1e9)) == pytest.approx(2 * math.sqrt(1000), rel=1e-6)
    assert not any(taken)  # no kernel has run: PyTorch did the work
    assert not kernels._SPARE
    gpu_stub.capturing = False
    gradclip.clip_by_global_norm_(g, 1e9)
    tables = dict(kernels._TABLES)
    gpu_stub.capturing = True
    taken.clear()
    for others in (g, g[1:]):
        gradclip.clip_by_global_norm_(others, 1e9)
    assert taken == [True] * 4
    assert tables == kernels._TABLES  # a graph's table is no other call's
    first, second = kernels._CAPTURED
    gpu_stub.capturing = False
    gradclip.clip_by_global_norm_([g, tensor(np.full(7, 2.0))], 1.0)
    np.testing.assert_array_equal(first, kernels._rows([(g.data_ptr(), 1000, g.dtype)])[0])
    np.testing.assert_array_equal(second, kernels._rows([(g[1:].data_ptr(), 999, g.dtype)])[0])
    gpu_stub.capturing = True
    taken.clear()
    gradclip.clip_by_global_norm_(g, 1.0)
    gradclip.global_norm(g.to(torch.float64))  # a variant that has not run
    assert taken == [True, True, False]


@only_interpreted
@pytest.mark.parametrize(("warp_size", "warps"), [(32, 8), (64, 4)])
def test_an_amd_gpu_takes_the_same_path_with_as_many_threads(kernels, gpu_stub, taken, warp_size, warps, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "7.0")
    monkeypatch.setattr(torch.version, "cuda", None)
    gpu_stub.warp_size = warp_size
    g = tensor([3.0, 4.0])
    assert float(gradclip.clip_by_global_norm_(g, 1.0)) == 5.0
    np.testing.assert_allclose(exact(g), [0.6, 0.8], rtol=1e-6)
    assert kernels._options(g.device)["num_warps"] == warps
    assert all(taken)


# What only a GPU can show --------------------------------------------------------------------------------------------


@only_gpu
@pytest.mark.parametrize("nonfinite", ["nan", "zero", "keep"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_wait_from_the_first_call_on(kernels, taken, dtype, nonfinite):
    arrays = sample(dtype, (1000,), (30, 40))
    threshold = torch.tensor(0.5, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for c in (1e9, 1.0, 0, INF, threshold):
            gradclip.clip_by_global_norm_(arrays, c, nonfinite=nonfinite)
            gradclip.clip_by_global_norm_(arrays, c, norm=3.0, nonfinite=nonfinite)
            gradclip.clip_by_global_norm_(arrays, c, norm=threshold, nonfinite=nonfinite)
            gradclip.clip_by_norm_(arrays, c)
            gradclip.global_norm(arrays)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(taken)


@only_gpu  # the interpreter does not round to bfloat16, but cuts off
@pytest.mark.parametrize("dtype", DTYPES)
def test_products_are_rounded_as_pytorch_rounds_them(kernels, taken, dtype):
    for norm in (3.0, 3e-3, 1e39):
        (g,) = sample(dtype, (100_003,))
        want = gradclip.clip_by_global_norm(g.cpu(), norm / 7, norm=norm).grads
        gradclip.clip_by_global_norm_(g, norm / 7, norm=norm)
        assert torch.equal(g.cpu(), want)
    assert all(taken)


@only_gpu
@pytest.mark.parametrize("dtype", REALS)
def test_the_norm_is_the_same_bit_for_bit(kernels, taken, dtype):
    arrays = sample(dtype, (3_000_001,), (700, 300), (5,))
    norms = {gradclip.global_norm(arrays).item() for _ in range(20)}
    assert len(norms) == 1
    assert norms.pop() == pytest.approx(oracle.norm([exact(a) for a in arrays]), rel=1e-6)
    assert all(taken)


@only_gpu
@pytest.mark.parametrize("warm", [False, True])
def test_a_graph_replays_the_clip(kernels, taken, warm):
    g = torch.zeros(5000, device="cuda")
    h = torch.zeros(3, device="cuda", dtype=torch.bfloat16)
    kernels._RUN.clear()
    kernels._SPARE.clear()
    if warm:
        gradclip.clip_by_global_norm_([g, h], 1.0)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        norm = gradclip.clip_by_global_norm_([g, h], 1.0)
    assert taken[-1] == warm
    for i in range(40):  # tables that come and go in between must not be the graph's
        gradclip.clip_by_global_norm_([torch.ones(100 + i, device="cuda"), h], 1e9)
        torch.ones(1 << 18, dtype=torch.uint8, pin_memory=True).fill_(255)
    for size in (0.25, 3.0):
        g.fill_(size)
        h.fill_(0)
        graph.replay()
        n = size * math.sqrt(5000)
        assert norm.item() == pytest.approx(n, rel=1e-6)
        np.testing.assert_allclose(exact(g), size * min(1, 1 / n), rtol=1e-6)


@only_gpu
def test_other_streams(kernels, taken):
    streams = [torch.cuda.Stream() for _ in range(3)]
    arrays = sample(torch.float32, (100_000,), (77,))
    want = gradclip.global_norm(arrays).item()
    for stream in streams:
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            norm = gradclip.global_norm(arrays)
        stream.synchronize()
        assert norm.item() == want
    assert all(taken)


@only_gpu
def test_more_elements_than_32_bits_count(kernels, taken):
    if torch.cuda.mem_get_info()[0] < 12e9:
        pytest.skip("needs 12 GB of GPU memory")
    size = 2**31 + 12345
    g = torch.full((size,), 0.5, dtype=torch.float16, device="cuda")
    g[-1] = 1000.0
    n = math.sqrt((size - 1) * 0.25 + 1e6)
    assert float(gradclip.clip_by_global_norm_(g, n / 2)) == pytest.approx(n, rel=1e-6)
    assert g[-1].item() == 500.0
    assert g[2**31 - 5 : 2**31 + 5].unique().tolist() == [0.25]
    assert g[:5].unique().tolist() == [0.25]
    assert all(taken)


@only_gpu
def test_a_gradient_within_the_threshold_is_not_written_to(kernels):
    (g,) = sample(torch.float32, (1_000_000,))
    gradclip.clip_by_global_norm_(g, 1e9)  # the first call compiles
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        gradclip.clip_by_global_norm_(g, 1e9)
        torch.cuda.synchronize()
    launched = [event.key for event in profile.key_averages() if event.device_type.name == "CUDA"]
    assert sorted(launched) == ["join", "multiply", "sum_squares"]
