"""The snippets that pages show: each is run, with a gradient (3, 4) of norm 5 and a threshold of 1."""

import os
import runpy
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest
import torch

SNIPPETS = Path(__file__).parents[1] / "book" / "snippets"
RANKS = ("torch_ddp", "torch_fsdp2", "torch_expert_parallel")  # tests/test_trainers_distributed.py runs them
# Those of the front page and the quickstart have tests of their own: test_intro.py and test_quickstart.py.
NAMES = sorted(path.stem for path in SNIPPETS.glob("*.py") if not path.stem.startswith(("first_", "quickstart_")))

pytestmark = [
    # Keras converts its variables to NumPy in a way that NumPy 2 warns of.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword"),
]


def run(name):
    return runpy.run_path(str(SNIPPETS / f"{name}.py"))


def fragment(name):
    """The lines that a page shows."""
    text = (SNIPPETS / f"{name}.py").read_text()
    return text.split("# [start]\n")[1].split("# [end]\n")[0]


def weights(names):
    """The weights after the snippet's step from zero with a learning rate of 1, turned around."""
    if "params" in names:
        return -np.asarray(names["params"]["w"])
    if "w" in names:
        return -np.asarray(names["w"])
    if isinstance(names["model"], torch.nn.Module):
        return torch.cat([-p.detach().ravel() for p in names["model"].parameters()]).numpy()
    return np.concatenate([-w.ravel() for w in names["model"].get_weights()])


@pytest.fixture(autouse=True)
def no_garbage_collection(monkeypatch):
    """The Trainer of transformers begins with one, which takes ten times as long as the rest."""
    monkeypatch.setattr("gc.collect", lambda *_: 0)


@pytest.fixture
def float32():
    yield
    keras.config.set_dtype_policy("float32")


@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize("name", [name for name in NAMES if name not in (*RANKS, "keras_train_step")])
def test_a_snippet_clips_where_it_should(name, capfd):
    """By value each element becomes 1; by the norm, of all gradients or of the one, the gradient becomes (0.6, 0.8).

    Clipped before the micro-batches are joined, without their number divided out, or with the loss scale, it would not.
    """
    names = run(name)
    half = name.endswith("_amp")  # its gradient must fit float16 when it is scaled, and is smaller
    if name.endswith("adaptive_threshold"):  # capped at 1 in the warm-up too
        assert max(threshold_states(names)) == 5.0
    want = [1.0, 1.0] if name.endswith("_value") else [0.6, 0.8]
    np.testing.assert_allclose(weights(names).ravel(), want, rtol=1e-3 if half else 1e-6)
    if "norm" in names:
        assert float(names["norm"]) == pytest.approx(1.2 if half else 5.0, rel=1e-3 if half else 1e-6)
    if name.endswith("log_norm"):
        assert "1 step. Norm: median 5" in capfd.readouterr().out


def threshold_states(names):
    """The norms that an adaptive threshold has learned."""
    clip = names.get("clip")
    if clip is None:
        return [names["checkpoint"]["threshold"]["mean"]]
    state = clip.state_dict()["clips"][0] if hasattr(clip, "state_dict") else clip.learned
    return [state["threshold"]["mean"], *state["history"]["norms"]]


def test_snippets_are_short_and_fit_a_page():
    for name in NAMES:
        lines = fragment(name).strip("\n").splitlines()
        assert 3 <= len(lines) <= 25, name
        assert max(map(len, lines)) <= 110, name
        assert any("gradclip" in line for line in lines), name


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_a_train_step_of_ones_own_learns_in_half_precision_too(policy, float32):
    """Without scale_loss, LossScaleOptimizer would divide by a scale that nothing was multiplied by: steps near 0."""
    names = run("keras_train_step")
    keras.config.set_dtype_policy(policy)
    model = names["Clipped"]([keras.Input((1,)), keras.layers.Dense(2, use_bias=False, kernel_initializer="zeros")])
    model.compile(keras.optimizers.SGD(learning_rate=1.0), loss=names["product"])
    log = model.fit(names["x"], names["y"] / 4, verbose=0)
    np.testing.assert_allclose(-model.get_weights()[0], [[0.6, 0.8]], rtol=1e-3)
    assert log.history["norm"] == pytest.approx([1.25], rel=1e-3)
