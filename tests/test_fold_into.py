"""fold_into: a fused step that clips is a clip and a step; a skipped one changes nothing; nothing is left behind."""

import copy
import math

import numpy as np
import pytest
import torch

import gradclip
from gradclip.torch import clip_grad_norm_, fold_into, get_total_norm

INF, NAN = math.inf, math.nan
OPTIMIZERS = {
    "Adam": lambda params, **options: torch.optim.Adam(params, lr=0.1, weight_decay=0.01, **options),
    "AdamW": lambda params, **options: torch.optim.AdamW(params, lr=0.1, amsgrad=True, **options),
    "SGD": lambda params, **options: torch.optim.SGD(params, lr=0.1, **options),
    "SGD with momentum": lambda params, **options: torch.optim.SGD(params, lr=0.1, momentum=0.9, **options),
    "Adagrad": lambda params, **options: torch.optim.Adagrad(params, lr=0.1, **options),
}


@pytest.fixture(params=OPTIMIZERS)
def make(request):
    return OPTIMIZERS[request.param]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return request.param


def model(device, seed=0):
    torch.manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape).to(device)) for shape in ((7, 5), (3,), (1,))]


def gradients(params, size, seed):
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = (size * torch.randn(p.shape, generator=generator)).to(p.device)


def norm_of(params):
    return get_total_norm([p.grad for p in params])


def same(params, others, rtol=1e-6):
    for p, q in zip(params, others, strict=True):
        np.testing.assert_allclose(p.detach().cpu(), q.detach().cpu(), rtol=rtol, atol=rtol)


def is_clean(optimizer):
    return not hasattr(optimizer, "grad_scale") and not hasattr(optimizer, "found_inf")


def test_a_folded_step_is_a_clip_and_a_step(make, device):
    params, others = model(device), model(device)
    fused, plain = make(params, fused=True), make(others, fused=False, foreach=False)
    for i, size in enumerate((10.0, 0.01, 3.0, 100.0, 1e-3)):
        gradients(params, size, seed=i)
        gradients(others, size, seed=i)
        fold_into(fused, norm_of(params), 2.0)
        fused.step()
        clip_grad_norm_(others, 2.0)
        plain.step()
        same(params, others, rtol=2e-6)
        assert is_clean(fused)


def test_nothing_is_felt_within_the_threshold(make, device):
    params, others = model(device), model(device)
    folded, fused = make(params, fused=True), make(others, fused=True)
    gradients(params, 1.0, seed=0)
    gradients(others, 1.0, seed=0)
    n = norm_of(params)
    for c in (n, float(n), 2 * n, INF, 1e300):
        fold_into(folded, n, c)
        assert folded.grad_scale.item() == 1.0
        folded.step()
        fused.step()
        assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


def test_a_later_step_knows_nothing_of_it(make):
    params, others = model("cpu"), model("cpu")
    fused, plain = make(params, fused=True), make(others, fused=False)
    gradients(params, 10.0, seed=0)
    gradients(others, 10.0, seed=0)
    fold_into(fused, 1e9, 1.0)
    fold_into(fused, norm_of(params), 1.0)  # the last one counts
    fused.step()
    clip_grad_norm_(others, 1.0)
    plain.step()
    gradients(params, 10.0, seed=1)
    gradients(others, 10.0, seed=1)
    fused.step()
    plain.step()
    same(params, others, rtol=2e-6)


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("first", [True, False])
def test_a_norm_that_is_not_finite_skips_the_step(make, device, bad, first):
    params, others = model(device), model(device)
    fused, plain = make(params, fused=True), make(others, fused=False)

    def step(size, seed):
        for its, optimizer in ((params, fused), (others, plain)):
            gradients(its, size, seed)
            if optimizer is fused:
                fold_into(fused, norm_of(params), 1.0)
            else:
                clip_grad_norm_(its, 1.0)
            optimizer.step()

    if not first:
        step(10.0, seed=0)
    before = [p.detach().clone() for p in params]
    state = copy.deepcopy(fused.state_dict()["state"])
    for c in (1.0, 0.0, INF):
        gradients(params, 1.0, seed=1)
        params[0].grad[2, 3] = bad
        fold_into(fused, norm_of(params), c)
        fused.step()
        assert is_clean(fused)
        assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))
    if not first:
        for i, its in fused.state_dict()["state"].items():
            assert all(
                torch.equal(torch.as_tensor(v), torch.as_tensor(state[i][k])) for k, v in its.items() if v is not None
            )
    for seed in (2, 3):
        step(10.0, seed)
    same(params, others, rtol=2e-6)


def test_memory_that_held_anything_is_no_momentum(monkeypatch):
    # What torch.empty finds is mostly zeros, and would hide it.
    monkeypatch.setattr(torch, "empty_like", lambda g: torch.full_like(g, 1e6))
    params = model("cpu")
    before = [p.detach().clone() for p in params]
    optimizer = torch.optim.SGD(params, lr=0.1, momentum=0.9, fused=True)
    gradients(params, 1.0, seed=0)
    fold_into(optimizer, NAN, 1.0)
    optimizer.step()
    fold_into(optimizer, norm_of(params), INF)
    optimizer.step()
    same(params, [b - 0.1 * p.grad for b, p in zip(before, params, strict=True)])


def test_a_threshold_of_zero(make, device):
    for size in (1.0, 0.0):
        params = model(device)
        before = [p.detach().clone() for p in params]
        optimizer = torch.optim.SGD(params, lr=0.1, fused=True)
        gradients(params, size, seed=0)
        fold_into(optimizer, norm_of(params), 0)
        optimizer.step()
        assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))


@pytest.mark.parametrize("ratio", [1e29, 1e31, 1e38, 1e40, 1e42])
@pytest.mark.parametrize("size", [1e-3, 1.0, 5e37])
def test_a_ratio_that_float32_cannot_hold(ratio, size):
    params = [torch.nn.Parameter(torch.zeros(2, dtype=torch.float64)), torch.nn.Parameter(torch.zeros(2))]
    for p in params:
        p.grad = torch.tensor([0.6, 0.8], dtype=p.dtype) * size / 2**0.5
    optimizer = torch.optim.SGD(params, lr=1.0, fused=True)
    c = size / ratio
    for n in (size, torch.tensor(size, dtype=torch.float64)):
        fold_into(optimizer, n, c)
        optimizer.step()
        for p in params:
            want = np.array([-0.6, -0.8]) * c / 2**0.5
            # Below the normal numbers of float32, a result is a multiple of 2⁻¹⁴⁹; a factor may be rounded twice.
            np.testing.assert_allclose(p.detach(), want, rtol=1e-6, atol=3e-45)
            p.data.zero_()
            p.grad = torch.tensor([0.6, 0.8], dtype=p.dtype) * size / 2**0.5


def test_norms_and_thresholds_of_every_kind(device):
    for n in (
        5.0,
        5,
        np.float32(5),
        torch.tensor(5.0),
        torch.tensor(5.0, device=device),
        torch.tensor(5, device=device),
    ):
        for c in (1.0, 1, np.float64(1), torch.tensor(1.0), torch.tensor(1.0, dtype=torch.float16, device=device)):
            params = [torch.nn.Parameter(torch.zeros(2, device=device))]
            params[0].grad = torch.tensor([3.0, 4.0], device=device)
            optimizer = torch.optim.SGD(params, lr=1.0, fused=True)
            fold_into(optimizer, n, c)
            optimizer.step()
            np.testing.assert_allclose(params[0].detach().cpu(), [-0.6, -0.8], rtol=1e-6)


def as_new(params, size, seed):
    """As after zero_grad() and backward()."""
    gradients(params, size, seed)


def in_place(params, size, seed):
    """As after zero_grad(set_to_none=False) and backward()."""
    before = [p.grad for p in params]
    gradients(params, size, seed)
    for p, g in zip(params, before, strict=True):
        g.copy_(p.grad)
        p.grad = g


def raises(*_):
    raise RuntimeError("no step")


@pytest.mark.parametrize("renew", [as_new, in_place])
def test_after_a_step_that_was_left_out_the_next_one_is_plain(make, renew):
    params, others = model("cpu"), model("cpu")
    fused, plain = make(params, fused=True), make(others, fused=False)
    gradients(params, 10.0, seed=0)
    fold_into(fused, norm_of(params), 0.1)
    renew(params, 3.0, seed=1)
    gradients(others, 3.0, seed=1)
    if renew is in_place:
        with pytest.warns(UserWarning, match="changed after fold_into") as warned:
            fused.step()
        assert warned[0].filename == __file__
    else:
        fused.step()
    plain.step()
    same(params, others, rtol=2e-6)
    assert is_clean(fused)


@pytest.mark.parametrize("begun", [True, False])
def test_after_a_step_that_raised_the_next_one_is_plain(make, begun):
    params, others = model("cpu"), model("cpu")
    fused, plain = make(params, fused=True), make(others, fused=False)
    gradients(params, 10.0, seed=0)
    gradients(others, 10.0, seed=0)
    fold_into(fused, norm_of(params), 0.1)
    if begun:
        hook = fused.register_step_pre_hook(raises)  # runs after ours, as anything within the step does
        with pytest.raises(RuntimeError, match="no step"):
            fused.step()
        hook.remove()
    else:
        with pytest.raises(ValueError, match="with a closure"):
            fused.step(raises)
        assert is_clean(fused)
    fused.step()
    plain.step()
    same(params, others, rtol=2e-6)
    assert is_clean(fused)


def test_within_a_closure_it_may_be_called(make):
    params, others = model("cpu"), model("cpu")
    fused, plain = make(params, fused=True), make(others, fused=False)

    def closure():
        gradients(params, 10.0, seed=0)
        fold_into(fused, norm_of(params), 0.1)

    for _ in range(2):
        fused.step(closure)
        assert is_clean(fused)
        gradients(others, 10.0, seed=0)
        clip_grad_norm_(others, 0.1)
        plain.step()
    same(params, others, rtol=2e-6)


@pytest.mark.parametrize("unscale", [True, False])
def test_a_scaler_after_a_step_that_was_left_out(make, unscale):
    params, others = model("cpu"), model("cpu")
    fused, plain = make(params, fused=True), make(others, fused=False)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.zeros(()))
    gradients(params, 1e4, seed=0)
    fold_into(fused, norm_of(params) / 1024, 0.1)
    gradients(params, 1024.0, seed=1)
    gradients(others, 1.0, seed=1)
    if unscale:
        scaler.unscale_(fused)
        scaler.step(fused)
        plain.step()
    else:
        with pytest.raises(RuntimeError, match=r"call fold_into before each scaler\.step"):
            scaler.step(fused)
    same(params, others, rtol=2e-6)
    assert is_clean(fused)


class Ignores(torch.optim.Optimizer):
    """An optimizer with a fused step of its own."""

    def step(self):
        pass


class Overrides(torch.optim.SGD):
    def step(self):
        pass


class Keeps(torch.optim.SGD):
    """A subclass that adds something beside the step."""


@pytest.mark.parametrize("scheduled", [True, False])
def test_a_subclass_that_keeps_the_step_is_taken(scheduled):
    params = model("cpu")
    before = [p.detach().clone() for p in params]
    optimizer = Keeps(params, lr=1.0, fused=True)
    if scheduled:
        torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)  # wraps the step of this one optimizer
    gradients(params, 10.0, seed=0)
    fold_into(optimizer, norm_of(params), 1.0)
    optimizer.step()
    moved = torch.cat([(p - b).reshape(-1) for p, b in zip(params, before, strict=True)])
    assert moved.norm().item() == pytest.approx(1.0, rel=1e-5)


def test_what_is_refused():
    params = model("cpu")
    fused = torch.optim.SGD(params, lr=0.1, fused=True)
    for error, message, arguments in (
        (ValueError, r"make the optimizer with SGD\(\.\.\., fused=True\)", (torch.optim.SGD(params, lr=0.1), 1.0, 1.0)),
        (ValueError, r"AdamW\(\.\.\., fused=True\)", (torch.optim.AdamW(params, foreach=True), 1.0, 1.0)),
        (TypeError, "with a fused step.*got RMSprop", (torch.optim.RMSprop(params), 1.0, 1.0)),
        (TypeError, "with a fused step.*got list", (params, 1.0, 1.0)),
        (TypeError, "got Ignores, whose step would not clip", (Ignores(params, {"lr": 0.1, "fused": True}), 1.0, 1.0)),
        (TypeError, "got Overrides, whose step would not clip", (Overrides(params, fused=True), 1.0, 1.0)),
        (ValueError, "max_norm must be ≥ 0, got -1", (fused, 1.0, -1.0)),
        (ValueError, "max_norm must be ≥ 0, got nan", (fused, 1.0, torch.tensor(NAN))),
        (TypeError, "max_norm must be a number", (fused, 1.0, "1")),
        (TypeError, "max_norm must be a number", (fused, 1.0, True)),
        (ValueError, "norm must be ≥ 0, got -1", (fused, -1.0, 1.0)),
        (TypeError, "norm must be a number", (fused, None, 1.0)),
        (TypeError, "norm must be a number", (fused, torch.ones(2), 1.0)),
    ):
        with pytest.raises(error, match=message):
            fold_into(*arguments)
        assert is_clean(fused)


@pytest.mark.parametrize("unscale", [True, False])
def test_under_a_grad_scaler(make, device, unscale):
    params, others = model(device), model(device)
    fused, plain = make(params, fused=True), make(others, fused=False)
    scaler = torch.amp.GradScaler(device, init_scale=1024.0, growth_interval=10**6)
    for i, size in enumerate((10.0, 0.01, NAN, 3.0)):
        scaler.scale(torch.zeros((), device=device))  # makes the scale
        scale = scaler.get_scale()
        gradients(params, size * scale, seed=i)
        if unscale:
            scaler.unscale_(fused)
            fold_into(fused, norm_of(params), 2.0)
        else:
            fold_into(fused, norm_of(params) / scale, 2.0)
        scaler.step(fused)
        scaler.update()
        assert is_clean(fused)
        if size == size:
            gradients(others, size, seed=i)
            clip_grad_norm_(others, 2.0)
            plain.step()
        same(params, others, rtol=2e-6)
    assert scaler.get_scale() == 512.0  # the scaler has seen the NaN
    gradients(params, 10 * 512.0, seed=9)
    gradients(others, 10.0, seed=9)
    scaler.step(fused)  # and a step without a fold is as ever
    plain.step()
    same(params, others, rtol=2e-6)


def test_a_scaler_that_is_switched_off():
    params, others = model("cpu"), model("cpu")
    fused, plain = torch.optim.SGD(params, lr=0.1, fused=True), torch.optim.SGD(others, lr=0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    gradients(params, 10.0, seed=0)
    gradients(others, 10.0, seed=0)
    fold_into(fused, norm_of(params), 1.0)
    scaler.step(fused)
    clip_grad_norm_(others, 1.0)
    plain.step()
    same(params, others)
    assert is_clean(fused)


def test_an_optimizer_that_was_folded_into_can_be_copied_and_goes_away():
    import gc
    import weakref

    params = model("cpu")
    optimizer = torch.optim.SGD(params, lr=0.1, fused=True)
    gradients(params, 10.0, seed=0)
    fold_into(optimizer, norm_of(params), 1.0)
    optimizer.step()
    copied = copy.deepcopy(optimizer)
    fold_into(copied, 10.0, 1.0)
    copied.step()
    assert is_clean(copied)
    gone = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert gone() is None


@pytest.mark.gpu
def test_no_wait(make):
    params = model("cuda")
    optimizer = make(params, fused=True)
    gradients(params, 10.0, seed=0)
    optimizer.step()
    threshold = torch.tensor(1.0, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for c in (1.0, 1, INF, threshold, torch.tensor(1.0)):
            fold_into(optimizer, gradclip.global_norm([p.grad for p in params]), c)
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_a_bad_threshold_that_the_device_alone_knows_skips_the_step():
    params = model("cuda")
    before = [p.detach().clone() for p in params]
    optimizer = torch.optim.SGD(params, lr=0.1, fused=True)
    for bad in (-1.0, NAN):
        gradients(params, 1.0, seed=0)
        fold_into(optimizer, norm_of(params), torch.tensor(bad, device="cuda"))
        optimizer.step()
        assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))
