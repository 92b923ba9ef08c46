"""The intro is not a notebook, so what it prints is checked here."""

import ast
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tensorflow as tf
import torch

import gradclip

INTRO = (Path(__file__).parents[1] / "book" / "intro.md").read_text(encoding="utf-8")
HUGE = np.array([1e20, 2e20], np.float32)


def by_pytorch():
    parameter = torch.zeros(2, requires_grad=True)
    parameter.grad = torch.tensor(HUGE)
    torch.nn.utils.clip_grad_norm_([parameter], 1.0)
    return parameter.grad


def by_optax():
    rule = optax.clip_by_global_norm(1.0)
    return rule.update(jnp.asarray(HUGE), rule.init(None))[0]


ANSWERS = {
    "PyTorch": [by_pytorch],
    "TensorFlow": [lambda: tf.clip_by_global_norm([tf.constant(HUGE)], 1.0)[0][0]],
    "JAX, with optax": [by_optax],
    "gradclip, on NumPy, PyTorch, TensorFlow and JAX arrays": [
        lambda to=to: gradclip.clip_by_global_norm(to(HUGE), max_norm=1.0).grads
        for to in (np.array, torch.tensor, tf.constant, jnp.asarray)
    ],
}


@pytest.mark.parametrize("library", ANSWERS)
def test_the_table_of_answers_is_what_the_libraries_answer(library):
    (printed,) = re.findall(rf"^\| {re.escape(library)} \| `(\[.*\])` \|$", INTRO, flags=re.MULTILINE)
    expected = [float("nan") if x.strip() == "nan" else float(x) for x in printed.strip("[]").split(",")]
    for answer in ANSWERS[library]:
        np.testing.assert_array_equal(np.asarray(answer(), np.float64).round(6), expected)


def test_the_one_call_runs_as_it_is_printed():
    (call,) = re.findall(r"```python\n(.*?)```", INTRO, flags=re.DOTALL)
    ast.parse(call)
    names = {"gradclip": gradclip, "grads": HUGE}
    exec(call, names)
    np.testing.assert_allclose(names["grads"], [0.447214, 0.894427], atol=1e-6)
