"""gradclip.torch: the functions of torch.nn.utils under their own signatures, and each difference from them."""

import copy
import functools
import inspect
import itertools
import math

import numpy as np
import pytest
import torch

import gradclip
import gradclip.torch as ours

theirs = torch.nn.utils
INF, NAN = math.inf, math.nan
ORDERS = (0.5, 1.5, 2.0, 4.0, INF)
NAMES = ("clip_grad_norm_", "clip_grad_value_", "get_total_norm", "clip_grads_with_norm_")


def parameters(*grads, dtype=torch.float32):
    """Parameters with these gradients; None for one without."""
    made = []
    for g in grads:
        g = None if g is None else torch.as_tensor(g, dtype=dtype)
        made.append(torch.nn.Parameter(torch.zeros((1,) if g is None else g.shape, dtype=dtype)))
        made[-1].grad = g
    return made


def linear(values):
    """A layer of 10×10 weights and 10 biases with the given gradients, and these joined in float64."""
    layer = torch.nn.Linear(10, 10)
    layer.weight.grad, layer.bias.grad = (v.clone() for v in values)
    return layer, torch.cat([v.double().reshape(-1) for v in values])


BIG = (torch.arange(1.0, 101.0).view(10, 10), torch.ones(10) * 1e-3)  # 1 to 100, and 0.001 for the biases
SMALL = (torch.arange(1.0, 101.0).view(10, 10) / 500, torch.ones(10) / 500)


# The same call --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_signatures_are_those_of_pytorch(name):
    def described(function):
        return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]

    assert described(getattr(ours, name)) == described(getattr(theirs, name))


def test_all_public_names_are_listed():
    assert set(ours.__all__) == {*NAMES, "NonFiniteGradientError", "clip_grad_adaptive_", "fold_into"}


@pytest.mark.parametrize("norm_type", [*ORDERS, "inf"])
def test_the_norm_is_the_one_before_and_the_threshold_the_one_after(norm_type):
    layer, exact = linear(BIG)
    want = torch.linalg.vector_norm(exact, float(norm_type)).item()
    norm = ours.clip_grad_norm_(layer.parameters(), 2.0, norm_type=norm_type)
    assert norm.item() == pytest.approx(want, rel=1e-6)
    assert norm.shape == ()
    clipped = torch.cat([p.grad.reshape(-1) for p in layer.parameters()]).double()
    assert torch.linalg.vector_norm(clipped, float(norm_type)).item() == pytest.approx(2, rel=1e-6)
    ratio = clipped / exact
    torch.testing.assert_close(ratio, ratio[0].expand(110), rtol=1e-6, atol=0)


@pytest.mark.parametrize("norm_type", ORDERS)
def test_small_gradients_are_scaled_by_exactly_one(norm_type):
    layer, exact = linear(SMALL)
    norm = torch.linalg.vector_norm(exact, norm_type).item()
    versions = [p.grad._version for p in layer.parameters()]
    ours.clip_grad_norm_(layer.parameters(), norm * 1.01, norm_type=norm_type)
    assert all(torch.equal(p.grad, was) for p, was in zip(layer.parameters(), SMALL, strict=True))
    assert [p.grad._version for p in layer.parameters()] == versions


@pytest.mark.parametrize("foreach", [None, True, False])
@pytest.mark.parametrize("norm_type", ORDERS)
def test_clipping_agrees_with_pytorch(norm_type, foreach):
    mine, _ = linear(BIG)
    other, _ = linear(BIG)
    norm = ours.clip_grad_norm_(mine.parameters(), 2.0, norm_type, False, foreach)
    torch.testing.assert_close(norm, theirs.clip_grad_norm_(other.parameters(), 2.0, norm_type, False, foreach))
    torch.testing.assert_close(ours.get_total_norm(BIG, norm_type, False, foreach), norm)
    torch.testing.assert_close(mine.weight.grad, other.weight.grad, rtol=2e-6, atol=0)
    torch.testing.assert_close(mine.bias.grad, other.bias.grad, rtol=2e-6, atol=0)


@pytest.mark.parametrize("foreach", [None, True, False])
def test_value_clipping_agrees_with_pytorch(foreach):
    grads = torch.arange(-50.0, 50.0).view(10, 10).div(5), None, torch.ones(10).mul(2)
    mine, other = (parameters(*(None if g is None else g.clone() for g in grads)) for _ in range(2))
    ours.clip_grad_value_(mine, 2.5, foreach=foreach)
    theirs.clip_grad_value_(other, 2.5, foreach=foreach)
    assert mine[0].grad.min() == -2.5
    assert mine[0].grad.max() == 2.5
    assert mine[1].grad is None
    assert torch.equal(mine[0].grad, other[0].grad)
    assert torch.equal(mine[2].grad, other[2].grad)
    special = parameters([NAN, INF, -INF])
    ours.clip_grad_value_(special, 2.5)
    torch.testing.assert_close(special[0].grad, torch.tensor([NAN, 2.5, -2.5]), equal_nan=True)


@pytest.mark.parametrize("clip", [ours.clip_grad_norm_, ours.clip_grad_value_])
def test_a_lone_tensor_is_a_list_of_one(clip):
    (alone,), (listed,) = parameters([3.0, -4.0]), parameters([3.0, -4.0])
    assert clip(alone, 1.0) == clip([listed], 1.0)
    assert torch.equal(alone.grad, listed.grad)
    assert alone.grad.abs().max() <= 1


def test_a_lone_tensor_has_a_norm_and_is_clipped_with_one():
    assert ours.get_total_norm(torch.tensor([3.0, 4.0])) == 5.0
    assert ours.get_total_norm(torch.tensor(-3.0), "inf") == 3.0
    (p,) = parameters([3.0, 4.0])
    ours.clip_grads_with_norm_(p, 1.0, torch.tensor(10.0))
    torch.testing.assert_close(p.grad, torch.tensor([0.3, 0.4]))


def test_parameters_without_a_gradient_are_passed_over():
    p = parameters([3.0], None, [4.0], None)
    assert ours.clip_grad_norm_(iter(p), 1.0) == 5.0
    torch.testing.assert_close(torch.stack([p[0].grad, p[2].grad]), torch.tensor([[0.6], [0.8]]))
    assert p[1].grad is p[3].grad is None


@pytest.mark.parametrize("nothing", [[], (), iter([]), parameters(None, None), parameters(None)[0]])
@pytest.mark.parametrize("max_norm", [1.0, torch.tensor(1.0)])
def test_where_there_is_no_gradient_the_norm_is_zero(nothing, max_norm):
    norm = ours.clip_grad_norm_(nothing, max_norm)
    assert torch.equal(norm, torch.tensor(0.0))
    assert torch.equal(ours.get_total_norm([]), torch.tensor(0.0))
    ours.clip_grads_with_norm_(nothing, max_norm, norm)
    ours.clip_grad_value_(nothing, max_norm)
    with pytest.raises(ValueError, match="max_norm must be ≥ 0, got -1"):
        ours.clip_grad_norm_(nothing, -max_norm)


def test_an_exhausted_generator_is_warned_of():
    layer, _ = linear(BIG)
    generator = layer.parameters()
    list(generator)
    for call in (
        lambda: ours.clip_grad_norm_(generator, 1.0),
        lambda: ours.clip_grad_value_(generator, 1.0),
        lambda: ours.clip_grads_with_norm_(generator, 1.0, torch.tensor(2.0)),
        lambda: ours.clip_grad_adaptive_(generator),
        lambda: theirs.clip_grad_norm_(generator, 1.0),
    ):
        with pytest.warns(UserWarning, match="^`parameters` is an empty generator, no gradient clipping") as warned:
            call()
        assert warned[0].filename == __file__
    assert torch.equal(layer.weight.grad, BIG[0])


def test_norm_and_scaling_apart_are_both_together():
    together, apart = linear(BIG)[0], linear(BIG)[0]
    norm = ours.clip_grad_norm_(together.parameters(), 2.0)
    same = ours.get_total_norm([p.grad for p in apart.parameters()])
    ours.clip_grads_with_norm_(apart.parameters(), 2.0, same)
    assert norm == same
    assert torch.equal(together.weight.grad, apart.weight.grad)


def test_the_norm_carries_no_derivative():
    w = torch.ones(2, requires_grad=True)
    assert not ours.get_total_norm([w * 3]).requires_grad
    w.grad = w * 3  # as backward(create_graph=True) leaves it
    assert not ours.clip_grad_norm_([w], 1.0).requires_grad


# The differences ------------------------------------------------------------------------------------------------------


def both(grads, max_norm, **options):
    """The gradients after our function, and after PyTorch's."""
    mine, other = (parameters(*(torch.tensor(g) for g in grads)) for _ in range(2))
    ours.clip_grad_norm_(mine, max_norm, **options)
    theirs.clip_grad_norm_(other, max_norm, **options)
    return [p.grad.tolist() for p in mine], [p.grad.tolist() for p in other]


def test_no_epsilon():
    mine, other = both([[1e-6]], 1e-6)
    assert mine[0] == pytest.approx([1e-6], rel=1e-7)
    assert other[0] == pytest.approx([0.5e-6], rel=1e-5)
    mine, other = both([[3.0, 4.0]], 5.0)
    assert mine == [[3.0, 4.0]] != other


def test_finite_gradients_whose_squares_overflow():
    mine, other = both([[1e20, 2e20]], 1.0)
    assert mine[0] == pytest.approx([0.447214, 0.894427], rel=1e-6)
    assert other == [[0.0, 0.0]]
    huge = parameters([3e38, 3e38])
    assert ours.clip_grad_norm_(huge, 1.0, error_if_nonfinite=True) == INF  # the norm overflows, no gradient does
    torch.testing.assert_close(huge[0].grad, torch.tensor([0.5, 0.5]).sqrt())
    assert ours.get_total_norm([torch.tensor([3e38, 3e38])], error_if_nonfinite=True) == INF


def test_the_norm_of_half_precision_is_float32():
    mine, other = (parameters([40000.0] * 4, dtype=torch.float16) for _ in range(2))
    norm = ours.clip_grad_norm_(mine, 1.0)
    assert norm.dtype == torch.float32
    assert norm == 80000
    assert mine[0].grad.tolist() == [0.5] * 4
    assert theirs.clip_grad_norm_(other, 1.0).dtype == torch.float16
    assert other[0].grad.tolist() == [0.0] * 4
    assert ours.clip_grad_norm_(parameters([1.0], dtype=torch.float64), 1.0).dtype == torch.float64


@pytest.mark.parametrize("bad", [-1.0, NAN, torch.tensor(-1.0)])
def test_negative_thresholds_and_nan_are_refused(bad):
    p = parameters([3.0, 4.0])
    for name, call in (
        ("max_norm", lambda: ours.clip_grad_norm_(p, bad)),
        ("clip_value", lambda: ours.clip_grad_value_(p, bad)),
        ("max_norm", lambda: ours.clip_grads_with_norm_(p, bad, torch.tensor(5.0))),
        ("total_norm", lambda: ours.clip_grads_with_norm_(p, 1.0, -torch.ones(()))),
        ("clip_factor", lambda: ours.clip_grad_adaptive_(p, bad)),
        ("eps", lambda: ours.clip_grad_adaptive_(p, eps=bad)),
    ):
        with pytest.raises(ValueError, match=f"^{name} must be ≥ 0"):
            call()
    assert p[0].grad.tolist() == [3.0, 4.0]
    if bad == -1:
        theirs.clip_grad_norm_(p, bad)
        assert p[0].grad[0] < 0  # the update's sign flips


@pytest.mark.parametrize("bad", [True, "1.0", None, (-1.0, 1.0)])
def test_thresholds_that_are_no_numbers_are_refused(bad):
    for name, call in (
        ("max_norm", lambda p: ours.clip_grad_norm_(p, bad)),
        ("clip_value", lambda p: ours.clip_grad_value_(p, bad)),
        ("total_norm", lambda p: ours.clip_grads_with_norm_(p, 1.0, bad)),
        ("eps", lambda p: ours.clip_grad_adaptive_(p, eps=bad)),
    ):
        with pytest.raises(TypeError, match=f"^{name} must be a number"):
            call(parameters([3.0]))


@pytest.mark.parametrize("norm_type", [0, -1.0, NAN, -INF, "fro", None])
def test_orders_not_above_zero_are_refused(norm_type):
    for call in (
        lambda: ours.clip_grad_norm_(parameters([3.0, 4.0]), 1.0, norm_type),
        lambda: ours.clip_grad_norm_(parameters([3.0, 4.0]), 1.0, norm_type, error_if_nonfinite=True),
        lambda: ours.get_total_norm([torch.ones(2)], norm_type),
        lambda: ours.clip_grad_adaptive_(parameters([3.0, 4.0]), norm_type=norm_type),
    ):
        with pytest.raises(ValueError, match=f"^norm_type must be .* got {norm_type!r}"):
            call()
    assert theirs.get_total_norm([torch.ones(2)], 0) == 1  # tensors, not elements


def test_an_infinite_threshold_measures_and_changes_nothing():
    p = parameters([3.0, INF])
    assert ours.clip_grad_norm_(p, INF) == INF
    assert p[0].grad.tolist() == [3.0, INF]


def test_the_same_gradient_is_counted_and_scaled_once():
    (tied,) = parameters([3.0, 4.0])
    assert ours.clip_grad_norm_([tied, tied], 1.0) == 5.0
    torch.testing.assert_close(tied.grad, torch.tensor([0.6, 0.8]))
    (other,) = parameters([3.0, 4.0])
    assert theirs.clip_grad_norm_([other, other], 1.0) > 7
    a, b = parameters([3.0, 4.0], [0.0, 0.0])
    b.grad = a.grad
    assert ours.clip_grad_norm_([a, b], 1.0) == 5.0
    torch.testing.assert_close(b.grad, torch.tensor([0.6, 0.8]))
    ours.clip_grads_with_norm_([a, b, a], 1.0, torch.tensor(2.0))
    torch.testing.assert_close(b.grad, torch.tensor([0.3, 0.4]))


# Gradients that are not finite ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm_type", ORDERS)
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_where_one_element_is_not_finite(bad, norm_type):
    shapes = ((10,), (3, 4), ())
    said = (
        f"^The total norm of order {norm_type} for gradients from `parameters` is non-finite, so it cannot be clipped"
    )
    with pytest.raises(RuntimeError, match=said):
        theirs.get_total_norm([torch.tensor(bad)], norm_type, error_if_nonfinite=True)
    for where in range(3):
        for position in {0, math.prod(shapes[where]) - 1}:
            grads = [torch.ones(shape) for shape in shapes]
            grads[where].view(-1)[position] = bad
            p = parameters(None, *(g.clone() for g in grads))
            norm = ours.clip_grad_norm_(p, 1.0, norm_type)
            assert math.isnan(norm) if math.isnan(bad) else norm == INF
            assert all(q.grad.isnan().all() for q in p[1:])

            p = parameters(None, *(g.clone() for g in grads))
            with pytest.raises(RuntimeError, match=rf"{said}.*not finite: grads\[{where + 1}\];.*parameters\[i\]"):
                ours.clip_grad_norm_(p, 1.0, norm_type, error_if_nonfinite=True)
            for q, was in zip(p[1:], grads, strict=True):
                torch.testing.assert_close(q.grad, was, rtol=0, atol=0, equal_nan=True)
            assert not ours.get_total_norm(grads, norm_type).isfinite()
            with pytest.raises(RuntimeError, match=rf"{said}.*not finite: tensors\[{where}\]$"):
                ours.get_total_norm(grads, norm_type, error_if_nonfinite=True)


@pytest.mark.parametrize("bad", [NAN, INF])
def test_sparse_gradients_that_are_not_finite(bad):
    indices = torch.tensor([[0, 2, 2]])
    p = torch.nn.Parameter(torch.zeros(4))
    for values, finite in (([1.0, bad, 1.0], False), ([1.0, 2.0, 1.0], True), ([1.0, INF, -INF], False)):
        p.grad = torch.sparse_coo_tensor(indices, torch.tensor(values), (4,), check_invariants=True)
        tensors = [torch.ones(2), p.grad]
        if finite:
            assert ours.get_total_norm(tensors, error_if_nonfinite=True) == pytest.approx(12**0.5)
            continue
        with pytest.raises(RuntimeError, match=r"not finite: tensors\[1\]$"):
            ours.get_total_norm(tensors, error_if_nonfinite=True)
        with pytest.raises(RuntimeError, match=r"not finite: grads\[0\]"):
            ours.clip_grad_norm_(p, 1.0, error_if_nonfinite=True)


def test_the_error_is_of_all_kinds_that_are_caught():
    for kind in (RuntimeError, FloatingPointError, gradclip.NonFiniteGradientError, ours.NonFiniteGradientError):
        with pytest.raises(kind, match="not finite"):
            ours.clip_grad_norm_(parameters([NAN]), 1.0, error_if_nonfinite=True)


def test_pytorch_makes_zeros_where_the_norm_is_infinite():
    mine, other = both([[INF, 1.0], [2.0]], 1.0)
    assert all(math.isnan(x) for x in itertools.chain(*mine))
    assert [math.isnan(x) for x in itertools.chain(*other)] == [True, False, False]
    assert other[1] == [0.0]


# Compiled -------------------------------------------------------------------------------------------------------------

DROP_INS = {
    "norm": lambda p: ours.clip_grad_norm_(p, 1.0),
    "norm of order 3": lambda p: ours.clip_grad_norm_(p, 1.0, 3.0),
    "generator": lambda p: ours.clip_grad_norm_((q for q in p), 1.0),
    "value": lambda p: ours.clip_grad_value_(p, 1.0),
    "total norm": lambda p: ours.get_total_norm([q.grad for q in p if q.grad is not None]),
    "given norm": lambda p: ours.clip_grads_with_norm_(p, 1.0, torch.tensor(10.0)),
    "adaptive": lambda p: ours.clip_grad_adaptive_(p, 0.1),
}
RAISING = {
    "norm": lambda p: ours.clip_grad_norm_(p, 1.0, error_if_nonfinite=True),
    "total norm": lambda p: ours.get_total_norm([q.grad for q in p if q.grad is not None], error_if_nonfinite=True),
}
compiled = functools.partial(torch.compile, backend="aot_eager")  # traces as the default does; kernels are not ours


@pytest.mark.parametrize("name", DROP_INS)
@pytest.mark.parametrize("grads", [([3.0, 4.0], None, [[0.5]]), ([0.3, 0.4], None, [[0.5]]), ([0.0], None, [[0.0]])])
def test_compiled_in_one_graph_they_do_the_same(name, grads):
    torch.compiler.reset()
    eager, traced = parameters(*grads), parameters(*grads)
    want = DROP_INS[name](eager)
    got = compiled(DROP_INS[name], fullgraph=True)(traced)
    torch.testing.assert_close(got, want)
    for p, q in zip(traced, eager, strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", RAISING)
def test_compiled_an_error_for_what_is_not_finite_breaks_the_graph(name):
    torch.compiler.reset()
    (p,), (eager,) = parameters([3.0, 4.0]), parameters([3.0, 4.0])
    clip = compiled(RAISING[name])
    assert clip([p]) == RAISING[name]([eager]) == 5.0
    torch.testing.assert_close(p.grad, eager.grad)
    (bad,) = parameters([3.0, NAN])
    with pytest.raises(ours.NonFiniteGradientError, match="non-finite"):
        clip([bad])
    assert bad.grad[0] == 3.0
    torch.compiler.reset()  # else what is compiled already is used
    with pytest.raises(torch._dynamo.exc.Unsupported):
        compiled(RAISING[name], fullgraph=True)(parameters([3.0, 4.0]))


# Adaptive clipping ----------------------------------------------------------------------------------------------------


def adaptive_by_hand(w, g, r, eps, ord, units):
    """Each unit by itself, in float64."""
    w, g = (x.astype(np.float64).copy() for x in (w, g))
    for unit in units:
        norm, limit = np.linalg.norm(g[unit].ravel(), ord), r * max(np.linalg.norm(w[unit].ravel(), ord), eps)
        if norm > limit:
            g[unit] *= limit / norm
    return g


@pytest.mark.parametrize("ord", [1.0, 2.0, 3.0, INF, "inf"])
@pytest.mark.parametrize("shape", [(), (5,), (4, 3), (4, 3, 2), (4, 3, 2, 2)])
def test_adaptive_clipping_takes_each_unit_by_its_weights(shape, ord):
    rng = np.random.default_rng(0)
    w, g = (np.asarray(rng.standard_normal(shape), np.float32) for _ in range(2))
    if len(shape) > 1:
        w[1] = 0  # eps is what lets it learn
    units = range(shape[0]) if len(shape) > 1 else [...]
    want = adaptive_by_hand(w, g, 0.2, 1e-2, float(ord), units)
    p, without = torch.nn.Parameter(torch.from_numpy(w)), torch.nn.Parameter(torch.ones(2))
    p.grad = torch.from_numpy(g.copy())
    before = p.detach().clone()
    assert ours.clip_grad_adaptive_(iter([without, p]), 0.2, 1e-2, ord) is None
    np.testing.assert_allclose(p.grad, want, rtol=2e-6)
    assert torch.equal(p, before)
    assert without.grad is None


def test_adaptive_clipping_with_other_units():
    w, g = (np.random.default_rng(1).standard_normal((4, 3, 2)).astype(np.float32) for _ in range(2))
    for options, units in (
        ({"unit_axis": 1}, [(slice(None), i) for i in range(3)]),
        ({"unit_axis": -1}, [(..., i) for i in range(2)]),
        ({"axis": 2}, [(i, j) for i in range(4) for j in range(3)]),
        ({"axis": (0, 1)}, [(..., i) for i in range(2)]),
        ({"axis": (0, 1, 2)}, [...]),
    ):
        p = torch.nn.Parameter(torch.from_numpy(w))
        p.grad = torch.from_numpy(g.copy())
        ours.clip_grad_adaptive_(p, 0.2, **options)
        np.testing.assert_allclose(p.grad, adaptive_by_hand(w, g, 0.2, 1e-3, 2, units), rtol=2e-6)


def test_adaptive_clipping_refuses_what_makes_no_sense():
    (p,) = parameters([[3.0, 4.0]])
    for error, arguments, options in (
        (ValueError, (-0.1,), {}),
        (ValueError, (0.1, NAN), {}),
        (ValueError, (0.1, 1e-3, 0), {}),
        (ValueError, (0.1,), {"axis": 0, "unit_axis": 0}),
        (ValueError, (0.1,), {"unit_axis": 2}),
        (TypeError, ("0.1",), {}),
    ):
        with pytest.raises(error):
            ours.clip_grad_adaptive_([p], *arguments, **options)
        assert p.grad.tolist() == [[3.0, 4.0]]
    ours.clip_grad_adaptive_([])
    ours.clip_grad_adaptive_(parameters(None))


# In a training loop ---------------------------------------------------------------------------------------------------


def train(utils, steps=30):
    """Losses and norms of a small recurrent network that learns to add, clipped with the functions of one module."""
    torch.manual_seed(0)
    network = torch.nn.RNN(2, 16, batch_first=True)
    head = torch.nn.Linear(16, 1)
    weights = [*network.parameters(), *head.parameters()]
    optimizer = torch.optim.SGD(weights, lr=0.05)
    losses, norms = [], []
    for _ in range(steps):
        x = torch.rand(16, 10, 2)
        loss = (head(network(x)[0][:, -1]) - x.prod(2).sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        norms.append(utils.clip_grad_norm_(weights, 2.0).item())
        optimizer.step()
        losses.append(loss.item())
    return losses, norms


def test_a_training_loop_goes_the_same_way():
    losses, norms = train(ours)
    other_losses, other_norms = train(theirs)
    clipped = sum(n > 2 for n in norms)
    assert 5 <= clipped <= len(norms) - 5
    assert losses[-1] < losses[0] / 2
    # Where a step is clipped, PyTorch's is shorter by 1e-6/n, here at most 5e-7. That is all there is between them.
    assert losses == pytest.approx(other_losses, rel=5e-6)
    assert norms == pytest.approx(other_norms, rel=2e-5)


def test_the_epsilon_is_what_the_two_differ_by():
    mine, _ = linear(SMALL)
    other = copy.deepcopy(mine)
    for p, q in zip(mine.parameters(), other.parameters(), strict=True):
        p.grad, q.grad = p.grad * 1e-3, p.grad * 1e-3
    norm = ours.clip_grad_norm_(mine.parameters(), 1e-4).item()
    theirs.clip_grad_norm_(other.parameters(), 1e-4)
    want = mine.weight.grad * norm / (norm + 1e-6)
    torch.testing.assert_close(other.weight.grad, want, rtol=1e-6, atol=0)
    assert not torch.allclose(mine.weight.grad, other.weight.grad, rtol=1e-4, atol=0)


def test_after_a_gradient_scaler_has_unscaled():
    """The order of mixed precision: scale, backward, unscale, clip, step. A step that is not finite is skipped."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for x, finite in ((torch.ones(8, 4), True), (torch.full((8, 4), INF), False)):
        optimizer.zero_grad()
        before = layer.weight.detach().clone()
        with torch.autocast("cpu", torch.bfloat16):
            loss = layer(x).float().square().mean() * 100
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = ours.clip_grad_norm_(layer.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()
        moved = (layer.weight - before).norm()
        if finite:
            assert 1 < norm < 1024  # not that of the scaled gradients
            assert moved <= 0.5
            assert moved > 0.4
        else:
            assert not norm.isfinite()
            assert moved == 0
