"""gradclip.optax: the rules as transformations, what their state remembers, and how they differ from optax's own."""

import dataclasses
import inspect
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradclip
import gradclip.optax as ours

INF, NAN = math.inf, math.nan
RNG = np.random.default_rng(0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    """A tree of a kind that JAX knows and gradclip does not, as those of flax and equinox are."""

    kernel: Any
    bias: Any = None


def tree(scale=1.0):
    """Gradients, some of them None, and parameters of the same structure."""
    layer = Layer(scale * jnp.asarray(RNG.standard_normal((4, 3))), scale * jnp.asarray(RNG.standard_normal(3)))
    return {"layers": (layer, Layer(scale * jnp.asarray(RNG.standard_normal((2, 3, 3, 4))))), "scale": None}


GRADS, PARAMS = tree(), tree(0.1)
NORM = float(optax.tree.norm(GRADS))
RULES = {
    "value": (lambda: ours.clip_by_value(0.5), lambda g: gradclip.clip_by_value(g, 0.5)),
    "norm": (lambda: ours.clip_by_norm(0.5), lambda g: gradclip.clip_by_norm(g, 0.5)),
    "slices": (lambda: ours.clip_by_norm(0.5, ord=1, axis=0), lambda g: gradclip.clip_by_norm(g, 0.5, ord=1, axis=0)),
    "global": (lambda: ours.clip_by_global_norm(0.5, ord=3), lambda g: gradclip.clip_by_global_norm(g, 0.5, ord=3)[0]),
    "adaptive": (lambda: ours.clip_adaptive(0.1), lambda g: gradclip.clip_adaptive(g, jax.tree.leaves(PARAMS), 0.1)),
}


def update(rule, grads, params=None):
    """The clipped gradients and the state after one step."""
    return rule.update(grads, rule.init(grads if params is None else params), params)


def assert_same(a, b, **options):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_allclose(x, y, **({"rtol": 2e-6, "atol": 1e-7} | options))


# The rules ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compile", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize(("new", "core"), RULES.values(), ids=RULES)
def test_any_tree_is_clipped_as_the_core_clips_its_leaves(new, core, compile):
    rule = new()
    state = compile(rule.init)(PARAMS)
    clipped, after = compile(rule.update)(GRADS, state, PARAMS)
    assert_same(clipped, jax.tree.unflatten(jax.tree.structure(GRADS), core(jax.tree.leaves(GRADS))))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert clipped["scale"] is None
    assert not np.allclose(clipped["layers"][0].kernel, GRADS["layers"][0].kernel)


def test_signatures():
    def described(name):
        return {p.name: (p.kind, p.default) for p in inspect.signature(getattr(ours, name)).parameters.values()}

    here, only, must = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.empty
    assert described("clip_by_value") == {"limit": (here, must)}
    assert described("clip_by_norm") == {"max_norm": (here, must), "ord": (only, 2), "axis": (only, None)}
    assert described("clip_by_global_norm") == {
        "max_norm": (here, must),
        "ord": (only, 2),
        "nonfinite": (only, "nan"),
    }
    assert described("clip_adaptive") == {
        "clip_factor": (here, 0.01),
        "eps": (only, 1e-3),
        "unit_axis": (only, None),
        "axis": (only, None),
    }
    for name in ("clip", "clip_by_block_rms", "adaptive_grad_clip", "per_example_global_norm_clip"):
        assert described(name) == {
            p.name: (p.kind, p.default) for p in inspect.signature(getattr(optax, name)).parameters.values()
        }


def test_an_interval():
    clipped, _ = update(ours.clip_by_value((-2.0, 1.0)), jnp.array([3.0, -4.0, NAN, 0.5]))
    np.testing.assert_array_equal(clipped, np.float32([1, -2, NAN, 0.5]))


def test_arrays_of_numpy_are_taken():
    clipped, state = update(ours.clip_by_global_norm(1.0), {"w": np.array([3.0, 4.0]), "b": jnp.zeros(1)})
    np.testing.assert_allclose(clipped["w"], [0.6, 0.8], rtol=1e-6)
    assert isinstance(clipped["w"], jax.Array)
    assert state.norm == 5.0


@pytest.mark.parametrize("unit_axis", [None, 0])
def test_units(unit_axis):
    params, grads = jnp.array([[3.0, 6.0], [4.0, 8.0]]), jnp.array([[0.3, 3.0], [0.4, 4.0]])
    clipped, _ = update(ours.clip_adaptive(0.1, unit_axis=unit_axis), grads, params)
    np.testing.assert_allclose(clipped, gradclip.clip_adaptive(grads, params, 0.1, unit_axis=unit_axis))
    tiny, _ = update(ours.clip_adaptive(0.1, eps=2.0), jnp.array([3.0, 4.0]), jnp.zeros(2))
    np.testing.assert_allclose(tiny, [0.12, 0.16], rtol=1e-6)
    with pytest.raises(ValueError, match=r"call update\(grads, state, params\)"):
        ours.clip_adaptive().update(grads, optax.EmptyState())


# What they remember ---------------------------------------------------------------------------------------------------


def test_the_state_keeps_the_norm_before_clipping():
    rule = ours.clip_by_global_norm(1.0)
    state = rule.init(PARAMS)
    assert state == ours.NormState(0.0)
    for scale in (1.0, 3.0, 1e-6):
        _, state = rule.update(jax.tree.map(lambda g, s=scale: g * s, GRADS), state)
        assert float(state.norm) == pytest.approx(NORM * scale, rel=1e-6)
        assert isinstance(state.norm, jax.Array)
    chain = optax.chain(optax.trace(0.9), rule, optax.adam(0.1))
    _, state = chain.update(GRADS, chain.init(PARAMS), PARAMS)
    assert float(optax.tree.get(state, "norm")) == pytest.approx(NORM, rel=1e-6)


def test_the_state_keeps_each_norm():
    first, second = GRADS["layers"]
    _, state = update(ours.clip_by_norm(1.0, ord=1), GRADS)
    norms = state.norm["layers"]
    assert float(norms[0].kernel) == pytest.approx(float(jnp.abs(first.kernel).sum()), rel=1e-6)
    assert float(norms[0].bias) == pytest.approx(float(jnp.abs(first.bias).sum()), rel=1e-6)
    assert norms[0].bias.shape == ()
    assert norms[1].bias is None
    for axis in (0, (0,), -1, (0, 1)):
        _, state = update(ours.clip_by_norm(1.0, axis=axis), second.kernel)
        want = jnp.sqrt(jnp.square(second.kernel).sum(axis, keepdims=True))
        np.testing.assert_allclose(state.norm, want, rtol=1e-6)


@pytest.mark.parametrize("options", [None, {}, {"axis": 0}], ids=["global", "arrays", "slices"])
def test_the_state_can_be_carried_through_a_loop(options):
    rule = ours.clip_by_global_norm(1.0) if options is None else ours.clip_by_norm(1.0, **options)
    floats = ("bfloat16", "float32", "float64")
    with jax.enable_x64(True):
        for of_params, of_grads in [(a, b) for a in floats for b in floats]:
            w = {"frozen": jnp.ones(3, of_params), "w": jnp.ones((4, 2), of_params)}

            def step(state, scale, w=w, dtype=of_grads):
                g = {"frozen": None, "w": scale * jnp.ones((4, 2), dtype)}
                clipped, state = rule.update(g, state, w)
                return state, clipped["w"]

            state, clipped = jax.lax.scan(step, rule.init(w), jnp.arange(1.0, 4.0, dtype=of_grads))
            assert clipped.dtype == of_grads
            norm = jax.tree.leaves(state.norm)[-1]
            assert norm.dtype == ("float64" if of_params == "float64" else "float32")
            np.testing.assert_allclose(norm, 3 * math.sqrt(4 if options else 8), rtol=1e-6)
            assert options is None or not state.norm["frozen"].any()


def test_where_there_is_nothing_to_clip():
    for nothing in ({}, [], None, {"a": None}):
        for new, _ in RULES.values():
            rule = new()
            clipped, _ = rule.update(nothing, rule.init(nothing), nothing if nothing is not None else [])
            assert clipped == nothing
        _, state = update(ours.clip_by_global_norm(1.0), nothing)
        assert state.norm == 0
        assert isinstance(state.norm, jax.Array)


# Together with optax --------------------------------------------------------------------------------------------------


def test_a_traced_threshold():
    """inject_hyperparams makes arrays of all numbers, so that they can be set while a compiled run goes on."""
    rule = optax.inject_hyperparams(ours.clip_by_global_norm)(max_norm=lambda step: 4.0 / (1 + step))
    run = jax.jit(rule.update)
    state = rule.init(PARAMS)
    for step in range(3):
        clipped, state = run(GRADS, state, PARAMS)
        assert float(optax.tree.norm(clipped)) == pytest.approx(4 / (1 + step), rel=1e-6)
        assert float(optax.tree.get(state, "norm")) == pytest.approx(NORM, rel=1e-6)
    for factory, name, first in (
        (ours.clip_by_global_norm, "max_norm", 1.0),
        (ours.clip_by_norm, "max_norm", 1.0),
        (ours.clip_by_value, "limit", 0.5),
        (ours.clip_adaptive, "clip_factor", 0.05),
    ):
        rule = optax.inject_hyperparams(factory)(**{name: first})
        run = jax.jit(rule.update)
        state = rule.init(PARAMS)
        for value in (first, first / 2):
            state.hyperparams[name] = jnp.asarray(value)
            clipped, state = run(GRADS, state, PARAMS)
            want, _ = factory(value).update(GRADS, factory(value).init(PARAMS), PARAMS)
            assert_same(clipped, want)
            assert not np.allclose(clipped["layers"][0].kernel, GRADS["layers"][0].kernel)


@pytest.mark.parametrize(
    ("factory", "name", "value"),
    [(ours.clip_by_norm, "axis", 0), (ours.clip_by_global_norm, "ord", 1), (ours.clip_adaptive, "unit_axis", 0)],
)
def test_what_cannot_be_traced_says_so(factory, name, value):
    with pytest.raises(TypeError, match=rf'{name} must be known .* pass static_args="{name}"'):
        optax.inject_hyperparams(factory)(0.1, **{name: value}).init(PARAMS)
    rule = optax.inject_hyperparams(factory, static_args=name)(0.1, **{name: value})
    clipped, _ = jax.jit(rule.update)(GRADS, rule.init(PARAMS), PARAMS)
    want, _ = factory(0.1, **{name: value}).update(GRADS, factory(0.1, **{name: value}).init(PARAMS), PARAMS)
    assert_same(clipped, want)


def test_a_traced_threshold_that_is_negative_makes_nan():
    rule = optax.inject_hyperparams(ours.clip_by_global_norm)(max_norm=1.0)
    state = rule.init(PARAMS)
    state.hyperparams["max_norm"] = jnp.asarray(-1.0)
    clipped, _ = jax.jit(rule.update)(GRADS, state, PARAMS)
    assert all(jnp.isnan(g).all() for g in jax.tree.leaves(clipped))


def test_a_traced_threshold_of_nothing():
    """A label of multi_transform that no parameter has leaves its rule a tree without arrays."""
    for factory in (ours.clip_by_global_norm, ours.clip_by_norm, ours.clip_by_value, ours.clip_adaptive):
        rules = {"none": optax.inject_hyperparams(factory)(1.0), "all": optax.identity()}
        rule = optax.multi_transform(rules, "all")
        clipped, _ = jax.jit(rule.update)({"w": jnp.ones(2)}, rule.init({"w": jnp.ones(2)}), {"w": jnp.ones(2)})
        assert (clipped["w"] == 1).all()


@pytest.mark.parametrize("kind", ["masked", "multi_transform", "partition"])
def test_only_a_part_is_clipped(kind):
    params = {"a": jnp.ones(2), "b": jnp.ones((2, 2))}
    grads = {"a": jnp.array([3.0, 4.0]), "b": jnp.full((2, 2), 5.0)}
    for rule, want in (
        (ours.clip_by_global_norm(1.0), [0.6, 0.8]),
        (ours.clip_by_norm(1.0), [0.6, 0.8]),
        (ours.clip_by_value(1.0), [1.0, 1.0]),
        (ours.clip_adaptive(1 / math.sqrt(2)), [0.6, 0.8]),
    ):
        if kind == "masked":
            partial = optax.masked(rule, {"a": True, "b": False})
        else:
            partial = getattr(optax, kind)({"clip": rule, "rest": optax.identity()}, {"a": "clip", "b": "rest"})
        clipped, state = jax.jit(partial.update)(grads, partial.init(params), params)
        np.testing.assert_allclose(clipped["a"], want, rtol=1e-6)
        np.testing.assert_array_equal(clipped["b"], grads["b"])
        norms = jax.tree.leaves(optax.tree.get(state, "norm", default=jnp.asarray(5.0)))
        assert [float(n) for n in norms] == [5.0]


def test_fifty_steps_end_at_the_last_threshold():
    for i in range(1, 51):
        clipped, state = update(ours.clip_by_global_norm(1 / i), GRADS)
        assert float(optax.tree.norm(clipped)) == pytest.approx(1 / i, rel=1e-6)
        assert float(state.norm) == pytest.approx(NORM, rel=1e-6)
        if i % 10 == 0:
            assert_same(clipped, update(optax.clip_by_global_norm(1 / i), GRADS)[0])


def test_a_training_run_is_that_of_optax():
    def loss(params, x):
        return jnp.mean((jnp.tanh(x @ params["w"]) @ params["v"] - x.sum(1, keepdims=True)) ** 2)

    def run(rule):
        optimizer = optax.MultiSteps(optax.chain(rule, optax.adam(0.05)), 2)
        rng = np.random.default_rng(0)
        params = {"w": jnp.asarray(rng.standard_normal((3, 8))), "v": jnp.asarray(rng.standard_normal((8, 1)))}

        def step(carry, x):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params, x)
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), value

        data = jnp.asarray(rng.standard_normal((40, 16, 3)))
        return jax.jit(lambda carry: jax.lax.scan(step, carry, data))((params, optimizer.init(params)))

    (params, _), losses = run(ours.clip_by_global_norm(0.5))
    (other, _), other_losses = run(optax.clip_by_global_norm(0.5))
    np.testing.assert_allclose(losses, other_losses, rtol=1e-4)
    assert_same(params, other, rtol=1e-3)
    assert losses[-1] < losses[0] / 2


# Beside optax's own ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [1e-3, 0.5, 0.99, 1.01, 1e3, INF])
def test_where_both_agree(share):
    assert_same(*(update(lib.clip_by_global_norm(NORM * share), GRADS)[0] for lib in (ours, optax)))
    assert_same(update(ours.clip_by_value(share), GRADS)[0], update(optax.clip(share), GRADS)[0])


@pytest.mark.parametrize("factor", [0.01, 0.3, 100.0])
def test_adaptive_clipping_agrees_on_matrices_and_kernels(factor):
    assert_same(*(update(rule(factor), GRADS, PARAMS)[0] for rule in (ours.clip_adaptive, optax.adaptive_grad_clip)))


def test_adaptive_clipping_counts_other_units_along_three_axes():
    rng = np.random.default_rng(1)
    grads, params = (jnp.asarray(rng.standard_normal((2, 3, 4))) for _ in range(2))
    mine, other = (update(rule(0.1), grads, params)[0] for rule in (ours.clip_adaptive, optax.adaptive_grad_clip))
    for clipped, axes in ((mine, (0, 1)), (other, 0)):
        norms, limits = (jnp.sqrt(jnp.square(x).sum(axes)) for x in (clipped, params))
        np.testing.assert_allclose(norms, 0.1 * limits, rtol=1e-5)
    assert not np.allclose(mine, other, rtol=0.1)


def test_finite_gradients_whose_squares_overflow():
    g = jnp.array([1e20, 2e20])
    clipped, state = update(ours.clip_by_global_norm(1.0), g)
    np.testing.assert_allclose(clipped, [0.447214, 0.894427], rtol=1e-6)
    assert float(state.norm) == pytest.approx(math.sqrt(5) * 1e20, rel=1e-6)
    assert (update(optax.clip_by_global_norm(1.0), g)[0] == 0).all()


def test_zeros_at_a_threshold_of_zero():
    assert (update(ours.clip_by_global_norm(0.0), jnp.zeros(3))[0] == 0).all()
    assert jnp.isnan(update(optax.clip_by_global_norm(0.0), jnp.zeros(3))[0]).all()


def test_negative_thresholds_are_refused():
    for rule in (ours.clip_by_value, ours.clip_by_norm, ours.clip_by_global_norm, ours.clip_adaptive):
        for compile in (lambda f: f, jax.jit):
            with pytest.raises(ValueError, match=r"must be ≥ 0, got -1\.0"):
                compile(rule(-1.0).update)(GRADS, rule(-1.0).init(PARAMS), PARAMS)
    assert (update(optax.clip_by_global_norm(-1.0), jnp.array([3.0, 4.0]))[0] < 0).all()  # the sign flips


def test_gradients_that_are_not_finite():
    bad = {"a": jnp.array([INF, 1.0]), "b": (None, Layer(jnp.array([2.0]), jnp.array([NAN])))}
    for policy, want in (("nan", NAN), ("zero", 0.0), ("keep", 2.0)):
        clipped, state = jax.jit(lambda g, policy=policy: update(ours.clip_by_global_norm(1.0, nonfinite=policy), g))(
            bad
        )
        np.testing.assert_array_equal(clipped["b"][1].kernel, [want])
        assert jnp.isnan(state.norm)
    rule = ours.clip_by_global_norm(1.0, nonfinite="raise")
    with pytest.raises(gradclip.NonFiniteGradientError, match=r"not finite: grads\['a'\], grads\['b'\]\[1\]\.bias;"):
        update(rule, bad)
    with pytest.raises(ValueError, match="traced"):
        jax.jit(rule.update)(bad, rule.init(bad))
    assert_same(update(rule, GRADS)[0], update(ours.clip_by_global_norm(1.0), GRADS)[0])
    each, _ = update(ours.clip_by_norm(1.0), bad)
    assert jnp.isnan(each["a"]).all()
    assert each["b"][1].kernel == 1.0


def test_the_norm_costs_no_second_pass():
    """The state of clip_by_norm takes its norms from where the clipping does: the compiler merges the two."""
    g = {"w": jnp.ones((256, 256))}

    def work(clip):
        return jax.jit(clip).lower(g).compile().cost_analysis()["flops"]

    with_state = work(lambda g: update(ours.clip_by_norm(1.0), g))
    assert with_state < work(lambda g: gradclip.clip_by_norm(g, 1.0)) * 1.1


# optax's own names ----------------------------------------------------------------------------------------------------

OPTAX = {
    "clip": lambda library: library.clip(0.5),
    "clip_by_block_rms": lambda library: library.clip_by_block_rms(0.5),
    "clip_by_global_norm": lambda library: library.clip_by_global_norm(0.5),
    "adaptive_grad_clip": lambda library: library.adaptive_grad_clip(0.1),
    "adaptive_grad_clip axis": lambda library: library.adaptive_grad_clip(0.1, 1e-2, axis=-1),
}
SHAPES = [(3,), (1,), (4, 3), (1, 6), (6, 1), (1, 1, 5), (1, 1, 1, 4), (2, 3, 4), (3, 3, 2, 4), (2, 2, 2, 3, 4)]


@pytest.mark.parametrize("factory", OPTAX.values(), ids=OPTAX)
@pytest.mark.parametrize("compile", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_one_changed_import_gives_the_same_updates(factory, compile):
    grads = [jnp.asarray(3 * RNG.standard_normal(shape)) for shape in SHAPES]
    params = [jnp.asarray(RNG.standard_normal(shape)) for shape in SHAPES]
    rule, own = factory(ours), factory(optax)
    got, _ = compile(rule.update)(grads, rule.init(params), params)
    assert_same(got, own.update(grads, own.init(params), params)[0])


@pytest.mark.parametrize("factory", OPTAX.values(), ids=OPTAX)
@pytest.mark.parametrize(
    "state", [None, optax.EmptyState(), (), ours.NormState(None), ours.NormState(jnp.zeros((7,))), {"norm": 0.0}]
)
def test_any_state_is_taken(factory, state):
    want = factory(ours).update(GRADS, factory(ours).init(PARAMS), PARAMS)
    got = factory(ours).update(GRADS, state, PARAMS)
    assert_same(got[0], want[0])
    if isinstance(want[1], ours.NormState):
        assert_same(got[1], want[1])


@pytest.mark.parametrize("bad", [(-1.0, 1.0), "1", True])
def test_the_limit_of_clip_is_one_number(bad):
    with pytest.raises(TypeError, match="max_delta must be a number"):
        ours.clip(bad).update(GRADS, None)


def test_more_than_five_axes_need_an_axis():
    x = jnp.ones((2,) * 6)
    with pytest.raises(ValueError, match="more than five axes; pass axis"):
        ours.adaptive_grad_clip(0.1).update([x], None, [x])
    ours.adaptive_grad_clip(0.1, axis=0).update([x], None, [x])


@pytest.mark.parametrize("threshold", [0.0, 0.5, 2.0, INF])
def test_examples_are_clipped_as_in_optax(threshold):
    grads = {"w": jnp.asarray(RNG.standard_normal((8, 4, 3))), "b": jnp.asarray(RNG.standard_normal((8, 3)))}
    (got, clipped), (want, count) = (
        library.per_example_global_norm_clip(grads, threshold) for library in (ours, optax)
    )
    assert_same(got, want)
    assert int(clipped) == int(count)


def test_per_example_gradients_of_a_model():
    """The recipe: vmap over examples of grad; the sum of what is left of each example's gradient."""
    x, y = (jnp.asarray(RNG.standard_normal((8, n)).squeeze()) for n in (3, 1))
    loss = lambda w, x, y: (x @ w - y) ** 2  # noqa: E731
    w = jnp.ones(3)
    got, clipped = ours.per_example_global_norm_clip(jax.vmap(jax.grad(loss), (None, 0, 0))(w, x, y), 1.0)
    own = np.stack([np.asarray(jax.grad(loss)(w, *pair)) for pair in zip(x, y, strict=True)])
    norms = np.linalg.norm(own, axis=1, keepdims=True)
    np.testing.assert_allclose(got, (own * np.minimum(1, 1 / norms)).sum(0), rtol=1e-5)
    assert int(clipped) == (norms > 1).sum() > 0


def test_each_norm_is_measured_once():
    """In the eager mode, where no compiler would find that two measurements are one."""
    rule = ours.clip_by_norm(1.0, axis=0)
    measured = []
    with pytest.MonkeyPatch.context() as patch:
        own = ours.backend.measure_each
        patch.setattr(ours.backend, "measure_each", lambda *args: measured.append(len(args[0])) or own(*args))
        rule.update([jnp.ones((2, 2))] * 3, None)
    assert measured == [3]
