"""Rule 16 on PyTorch: the norm of DTensor gradients is that of the whole gradient on every rank, after one exchange."""

import itertools
import math
import sys
import tempfile

import numpy as np
import oracle
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import gradclip
from gradclip.torch import clip_grad_norm_, clip_grads_with_norm_, fold_into, get_total_norm

ORDERS = (0.5, 1, 2, 3, math.inf)

pytestmark = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available() or sys.platform != "linux", reason="needs gloo"
)


def whole(x):
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def exchanges(call):
    """How many collectives a call needs, and its result."""
    from torch.distributed.tensor.debug import CommDebugMode

    with CommDebugMode() as mode:
        result = call()
    return mode.get_total_counts(), result


def same_everywhere(norm):
    every = [torch.zeros_like(norm) for _ in range(dist.get_world_size())]
    dist.all_gather(every, norm)
    return all(torch.equal(n, norm) or (n.isnan() and norm.isnan()) for n in every)


def samples(dtype):
    """Gradients of one mesh along one axis, of one along two, and one that every rank has."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    ranks = dist.get_world_size()
    line = init_device_mesh("cpu", (ranks,))
    square = init_device_mesh("cpu", (ranks // 2, 2), mesh_dim_names=("data", "model"))
    generator = torch.Generator().manual_seed(0)
    arrays = []
    for shape, mesh, placements in (
        ((9, 4), line, [Shard(0)]),
        ((3,), line, [Shard(0)]),  # nothing is left for the last of four ranks
        ((5, 8), line, [Shard(1)]),
        ((6,), line, [Replicate()]),
        ((8, 6), square, [Shard(0), Shard(1)]),
        ((7, 2), square, [Replicate(), Shard(0)]),
        ((7, 3), square, [Shard(0), Replicate()]),
        ((4,), None, None),
    ):
        full = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        arrays.append(distribute_tensor(full, mesh, placements) if mesh else full)
    return arrays


def the_whole_gradient_counts():
    for dtype, ord in itertools.product((torch.float32, torch.bfloat16, torch.float64), ORDERS):
        grads = samples(dtype)
        exact = [whole(g).double().numpy().copy() for g in grads]
        n = oracle.norm(exact, ord)
        tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-6
        for c in (2 * n, n / 3):
            want = oracle.clip_by_global_norm(exact, c, ord)
            clipped, norm = gradclip.clip_by_global_norm(grads, c, ord=ord)
            assert float(norm) == pytest.approx(n, rel=1e-6)
            assert same_everywhere(norm)
            for g, got, w in zip(grads, clipped, want, strict=True):
                assert type(got) is type(g)
                assert getattr(got, "placements", None) == getattr(g, "placements", None)
                np.testing.assert_allclose(whole(got).double().numpy(), w, rtol=tolerance)
            in_place = [g.clone() for g in grads]
            assert float(gradclip.clip_by_global_norm_(in_place, c, ord=ord)) == float(norm)
            for a, b in zip(in_place, clipped, strict=True):
                assert torch.equal(whole(a), whole(b))


def one_exchange_per_mesh():
    grads = samples(torch.float32)
    for ord in ORDERS:
        assert exchanges(lambda ord=ord: gradclip.global_norm(grads[:4], ord=ord))[0] == 1
        assert exchanges(lambda ord=ord: gradclip.clip_by_global_norm_(grads[:4] * 50, 1.0, ord=ord))[0] == 1
        assert exchanges(lambda ord=ord: gradclip.global_norm(grads[4:], ord=ord))[0] == 1
        assert exchanges(lambda ord=ord: gradclip.global_norm(grads, ord=ord))[0] == 2
    assert exchanges(lambda: gradclip.clip_by_global_norm_(grads, 1.0, norm=2.0))[0] == 0


def squares_need_not_fit():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for raw, dtype in (
        ([1e20, -2e20, 3.0, 0.0, 1.0], torch.float32),
        ([1e-30, 1e-30, 0.0, 0.0, 1e-30], torch.float32),
        ([1e200, 1e-200, 1.0, 0.0, 3e200], torch.float64),
        ([1e-200, 0.0, 1e-210, 0.0, 3e-200], torch.float64),
        ([3e38, -3e38, 0.0, 1.5e38, 1.0], torch.float32),  # not even the norm
        ([1.5e308, -1.5e308, 0.0, 1e308, 1.0], torch.float64),
    ):
        g = distribute_tensor(torch.tensor(raw, dtype=dtype), mesh, [Shard(0)])
        peak = max(map(abs, raw))
        unit = np.array(raw) / peak
        for ord in (1, 2, 3):
            clipped = gradclip.clip_by_global_norm(g, 1e-3 * peak, ord=ord).grads
            np.testing.assert_allclose(
                whole(clipped).double().numpy() / peak, unit / oracle.norm([unit], ord) * 1e-3, rtol=1e-6, atol=1e-40
            )


def a_gradient_that_is_not_finite_is_felt_everywhere():
    for bad, policy in itertools.product((math.nan, math.inf), ("nan", "zero", "keep", "raise")):
        grads = samples(torch.float32)
        if dist.get_rank() == 1:
            grads[0].to_local()[0, 0] = bad
        before = [whole(g).clone() for g in grads]
        if policy == "raise":
            with pytest.raises(gradclip.NonFiniteGradientError, match=r"not finite: grads\[0\];"):
                gradclip.clip_by_global_norm_(grads, 1.0, nonfinite="raise")
        else:
            norm = gradclip.clip_by_global_norm_(grads, 1.0, nonfinite=policy)
            assert same_everywhere(norm)
            np.testing.assert_equal(float(norm), bad)
        for g, was in zip(grads, before, strict=True):
            if policy in ("keep", "raise"):
                np.testing.assert_array_equal(whole(g), was)
            else:
                assert (whole(g).isnan() if policy == "nan" else whole(g) == 0).all()


def each_array_and_each_element():
    grads = samples(torch.float32)
    exact = [whole(g).double().numpy().copy() for g in grads]
    for got, was in zip(gradclip.clip_by_norm(grads, 0.5), exact, strict=True):
        np.testing.assert_allclose(whole(got).numpy(), oracle.clip_by_norm(was, 0.5), rtol=1e-6)
    for got, was in zip(gradclip.clip_by_value(grads, 0.5), exact, strict=True):
        np.testing.assert_allclose(whole(got).numpy(), was.clip(-0.5, 0.5), rtol=1e-6)
    gradclip.clip_by_value_(grads, 0.5)
    for got, was in zip(grads, exact, strict=True):
        np.testing.assert_allclose(whole(got).numpy(), was.clip(-0.5, 0.5), rtol=1e-6)


def each_slice_and_each_unit():
    def check(clip, clip_, oracles):
        in_place = [g.clone() for g in grads]
        clip_(in_place)
        for got, its, g, want in zip(clip(grads), in_place, grads, oracles, strict=True):
            assert getattr(got, "placements", None) == getattr(g, "placements", None)
            np.testing.assert_allclose(whole(got).numpy(), want, rtol=1e-6)
            assert torch.equal(whole(its), whole(got))

    grads = [g for g in samples(torch.float32) if g.ndim == 2]
    exact = [whole(g).double().numpy().copy() for g in grads]
    for axis in (0, 1, (0, 1)):
        check(
            lambda grads, axis=axis: gradclip.clip_by_norm(grads, 0.5, axis=axis),
            lambda grads, axis=axis: gradclip.clip_by_norm_(grads, 0.5, axis=axis),
            [oracle.clip_by_norm(g, 0.5, axis=axis) for g in exact],
        )
    params = [g * g for g in grads]
    rows = [np.linalg.norm(g * g, axis=1, keepdims=True) for g in exact]
    check(
        lambda grads: gradclip.clip_adaptive(grads, params, 0.3),
        lambda grads: gradclip.clip_adaptive_(grads, params, 0.3),
        [oracle.clip_by_norm(g, 0.3 * np.maximum(r, 1e-3), axis=1) for g, r in zip(exact, rows, strict=True)],
    )


def a_norm_that_is_a_dtensor_may_be_given():
    grads = samples(torch.float32)[:3]
    exact = [whole(g).double().numpy().copy() for g in grads]
    norm = torch.nn.utils.get_total_norm(grads, foreach=False)
    assert hasattr(norm, "full_tensor")
    gradclip.clip_by_global_norm_(grads, 1.0, norm=norm)
    for got, want in zip(grads, oracle.clip_by_global_norm(exact, 1.0), strict=True):
        np.testing.assert_allclose(whole(got).numpy(), want, rtol=1e-5)


def the_norm_is_placed_as_pytorch_places_it():
    from torch.distributed.tensor import DTensor

    grads = samples(torch.float32)
    line, square = grads[:4], grads[4:7]
    for alike in (line, square):
        n = oracle.norm([whole(g).double().numpy() for g in alike], 2)
        theirs = torch.nn.utils.get_total_norm(alike)
        params = [torch.nn.Parameter(g.clone()) for g in alike]
        for p, g in zip(params, alike, strict=True):
            p.grad = g.clone()
        for ours in (get_total_norm(alike), clip_grad_norm_(params, 1.0)):
            assert isinstance(ours, DTensor)
            assert ours.device_mesh == theirs.device_mesh
            assert len(ours.placements) == len(theirs.placements)
            count, every = exchanges(lambda ours=ours: (ours.full_tensor(), ours.to_local(), ours.item(), float(ours)))
            assert count == 0
            assert [float(x) for x in every] == pytest.approx([n] * 4, rel=1e-6)
            assert same_everywhere(ours.to_local())
            assert ours > 0.5
        clip_grads_with_norm_(params, 0.5, clip_grad_norm_(params, 2.0))
        assert float(get_total_norm([p.grad for p in params])) == pytest.approx(0.5, rel=1e-6)


def meshes_may_differ_in_one_call():
    params = [torch.nn.Parameter(g) for g in samples(torch.float32)]
    for p in params:
        p.grad = p.detach().clone()
    exact = [whole(p.grad).double().numpy().copy() for p in params]
    with pytest.raises((RuntimeError, ValueError)):
        torch.nn.utils.get_total_norm([p.grad for p in params])
    count, norm = exchanges(lambda: clip_grad_norm_(params, 1.0))
    assert count == 2
    assert type(norm) is torch.Tensor
    assert float(norm) == pytest.approx(oracle.norm(exact, 2), rel=1e-6)
    for p, want in zip(params, oracle.clip_by_global_norm(exact, 1.0), strict=True):
        np.testing.assert_allclose(whole(p.grad), want, rtol=1e-5)


def a_threshold_may_be_a_dtensor():
    from torch.distributed.tensor import Partial, Replicate, distribute_tensor

    grads = samples(torch.float32)
    mesh = grads[0].device_mesh
    for threshold in (
        distribute_tensor(torch.tensor(0.5), mesh, [Replicate()]),
        type(grads[0]).from_local(torch.tensor(0.5 / dist.get_world_size()), mesh, [Partial()]),
    ):
        for clip in (gradclip.clip_by_global_norm, gradclip.clip_by_norm, gradclip.clip_by_value):
            got, want = clip(grads, threshold), clip(grads, 0.5)
            for g, w in zip(getattr(got, "grads", got), getattr(want, "grads", want), strict=True):
                np.testing.assert_allclose(whole(g), whole(w), rtol=1e-6)
        in_place = [g.clone() for g in grads]
        gradclip.clip_by_global_norm_(in_place, threshold)
        for g, w in zip(in_place, gradclip.clip_by_global_norm(grads, 0.5).grads, strict=True):
            np.testing.assert_allclose(whole(g), whole(w), rtol=1e-6)
    with pytest.raises(ValueError, match="max_norm must be ≥ 0"):
        gradclip.clip_by_global_norm(grads, distribute_tensor(torch.tensor(-1.0), mesh, [Replicate()]))


def within_the_threshold_nothing_is_written():
    grads = samples(torch.float32)
    parts = [g.to_local() if hasattr(g, "to_local") else g for g in grads]
    before = [part._version for part in parts]
    n = gradclip.clip_by_global_norm_(grads, 1e9)
    gradclip.clip_by_global_norm_(grads, n)
    gradclip.clip_by_global_norm_(grads, 3.0, norm=2.0)
    assert [part._version for part in parts] == before


def a_fused_step_clips():
    grads = samples(torch.float32)[:4]
    for make in (torch.optim.Adam, torch.optim.AdamW):  # PyTorch's other fused steps take no DTensors
        params = [torch.nn.Parameter(torch.zeros_like(g)) for g in grads]
        others = [torch.nn.Parameter(torch.zeros(g.shape)) for g in grads]
        fused, plain = (make(its, lr=0.1, eps=1.0, fused=its is params) for its in (params, others))
        for p, q, g in zip(params, others, grads, strict=True):
            p.grad, q.grad = g * 10, whole(g) * 10
        fold_into(fused, get_total_norm([p.grad for p in params]), 1.0)
        fused.step()
        clip_grad_norm_(others, 1.0)
        plain.step()
        for p, q in zip(params, others, strict=True):
            np.testing.assert_allclose(whole(p).detach(), q.detach(), rtol=1e-5)


def fully_shard_trains_as_one_process_does():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    def model():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(6, 10), torch.nn.Tanh(), torch.nn.Linear(10, 3))

    ranks = dist.get_world_size()
    plain, sharded = model(), model()
    for layer in (sharded[0], sharded[2], sharded):
        fully_shard(layer, mesh=init_device_mesh("cpu", (ranks,)))
    batch = torch.randn(ranks * 5, 6)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (plain, sharded)]
    for _ in range(3):
        losses = plain(batch).square().mean() * 100, sharded(batch.chunk(ranks)[dist.get_rank()]).square().mean() * 100
        norms = []
        for loss, m, optimizer in zip(losses, (plain, sharded), optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            norms.append(clip_grad_norm_(m.parameters(), 0.5))
            optimizer.step()
        assert norms[0] > 0.5
        assert float(norms[1]) == pytest.approx(float(norms[0]), rel=1e-5)
    for p, q in zip(plain.parameters(), sharded.parameters(), strict=True):
        np.testing.assert_allclose(p.detach(), whole(q).detach(), rtol=1e-4, atol=1e-6)


CASES = [
    the_whole_gradient_counts,
    one_exchange_per_mesh,
    squares_need_not_fit,
    a_gradient_that_is_not_finite_is_felt_everywhere,
    each_array_and_each_element,
    each_slice_and_each_unit,
    a_norm_that_is_a_dtensor_may_be_given,
    the_norm_is_placed_as_pytorch_places_it,
    meshes_may_differ_in_one_call,
    a_threshold_may_be_a_dtensor,
    within_the_threshold_nothing_is_written,
    a_fused_step_clips,
    fully_shard_trains_as_one_process_does,
]


def rank(number, ranks, meeting_place):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting_place}/meet", rank=number, world_size=ranks)
    try:
        for case in CASES:
            try:
                case()
            except BaseException as error:
                raise AssertionError(case.__name__) from error
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("ranks", [2, 4])
def test_rule_16_on_several_processes(ranks):
    with tempfile.TemporaryDirectory() as meeting_place:
        mp.spawn(rank, args=(ranks, meeting_place), nprocs=ranks)
