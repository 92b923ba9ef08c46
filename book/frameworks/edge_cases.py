"""One case, clipped by its global norm through each framework: what every one of them answers, as a short text.

A gradient is a NumPy array, None (no gradient), or `Rows` (a sparse one). Each system turns it into its own kind, clips
and hands back NumPy, one dense array for each parameter. The same array listed twice is one parameter listed twice.
"""

import contextlib
import html
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
with contextlib.suppress(ImportError):
    import triton  # before TensorFlow: see book/reference/versions.md

import jax.numpy as jnp
import keras  # type: ignore[import-untyped]
import numpy as np
import optax  # type: ignore[import-untyped]
import tensorflow as tf
import torch
from numpy.typing import NDArray

import gradclip

Array = NDArray[Any]


class Rows(NamedTuple):
    """The sparse gradient of an array of length two: a value for each index, and an index may come again."""

    indices: Sequence[int]
    values: Array

    @property
    def dense(self) -> Array:
        whole = np.zeros(2, self.values.dtype)
        np.add.at(whole, list(self.indices), self.values)
        return whole


Gradient = Array | Rows | None
Clip = Callable[[Sequence[Gradient], float], list[Array]]


class Case(NamedTuple):
    grads: Sequence[Gradient]
    max_norm: float


class Absent(Exception):
    """The framework has no such gradient."""


# One function for each system ----------------------------------------------------------------------------------------


def by_formula(grads: Sequence[Gradient], max_norm: float) -> list[Array]:
    """The formula in NumPy as one would type it, in the gradients' own dtype."""
    arrays: list[Any] = [_numpy(g) for g in grads]
    with np.errstate(all="ignore"):
        norm = np.sqrt(sum(np.sum(g**2) for g in arrays))
        return _one_each(grads, [g * np.minimum(1, max_norm / norm) for g in arrays])


def by_torch(grads: Sequence[Gradient], max_norm: float) -> list[Array]:
    parameters = _once_made(grads, _parameter)
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    return _one_each(grads, [p.grad for p in parameters])


def by_tensorflow(grads: Sequence[Gradient], max_norm: float) -> list[Array]:
    clipped, _ = tf.clip_by_global_norm(_once_made(grads, _tensorflow), max_norm)
    return _one_each(grads, clipped)


def by_keras(grads: Sequence[Gradient], max_norm: float) -> list[Array]:
    """Keras clips inside its optimizers. At learning rate 1, a step of gradient descent is the clipped gradient."""
    variables = _once_made(grads, lambda g: keras.Variable(np.zeros_like(_dense(g))))
    optimizer = keras.optimizers.SGD(1.0, global_clipnorm=max_norm)
    optimizer.apply_gradients(list(zip(_once_made(grads, _tensorflow), variables, strict=True)))
    moved = [-keras.ops.convert_to_numpy(v) for v in variables]
    return _one_each(grads, [None if g is None else m for g, m in zip(grads, moved, strict=True)])


def by_optax(grads: Sequence[Gradient], max_norm: float) -> list[Array]:
    rule = optax.clip_by_global_norm(max_norm)
    clipped, _ = rule.update(_once_made(grads, _jax), rule.init(None))
    return _one_each(grads, clipped)


def gradclip_numpy(grads: Sequence[Gradient], max_norm: float) -> list[Array]:
    arrays = _once_made(grads, lambda g: None if g is None else _numpy(g).copy())
    gradclip.clip_by_global_norm_(arrays, max_norm)
    return _one_each(grads, arrays)


def gradclip_torch(grads: Sequence[Gradient], max_norm: float) -> list[Array]:
    parameters = _once_made(grads, _parameter)
    gradclip.clip_by_global_norm_([p.grad for p in parameters], max_norm)
    return _one_each(grads, [p.grad for p in parameters])


def gradclip_tensorflow(grads: Sequence[Gradient], max_norm: float) -> list[Array]:
    return _one_each(grads, gradclip.clip_by_global_norm(_once_made(grads, _tensorflow), max_norm).grads)


def gradclip_jax(grads: Sequence[Gradient], max_norm: float) -> list[Array]:
    return _one_each(grads, gradclip.clip_by_global_norm(_once_made(grads, _jax), max_norm).grads)


FRAMEWORKS: dict[str, Clip] = {
    "NumPy": by_formula,
    "PyTorch": by_torch,
    "TensorFlow": by_tensorflow,
    "Keras": by_keras,
    "optax": by_optax,
}
GRADCLIP: dict[str, Clip] = {
    "NumPy": gradclip_numpy,
    "PyTorch": gradclip_torch,
    "TensorFlow": gradclip_tensorflow,
    "JAX": gradclip_jax,
}


def exact(case: Case) -> list[Array] | None:
    """What the rule says, in float64, each parameter counted once; None where it says nothing."""
    arrays = [_dense(g).astype(np.float64) for g in _one_each(case.grads, case.grads)]
    whole = np.concatenate([np.zeros(0), *map(np.ravel, arrays)])
    if not case.max_norm >= 0 or not np.isfinite(whole).all():
        return None
    norm = np.linalg.norm(whole)
    return arrays if norm <= case.max_norm else [a * (case.max_norm / norm) for a in arrays]


# What they answer ----------------------------------------------------------------------------------------------------


def answer(clip: Clip, case: Case) -> str:
    """The clipped entries to two digits; "error" and its type; or "–" where there are no such gradients."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a variable has no gradient, that sparse tensors are new
            return show(clip(case.grads, case.max_norm))
    except Absent:
        return "–"
    except Exception as error:  # what it is, is the answer
        return f"error: {type(error).__name__}"


def show(arrays: Sequence[Array]) -> str:
    entries = [number(x) for a in arrays for x in np.ravel(a)]
    if len(entries) > 1 and len(set(entries)) == 1:
        return f"all {entries[0]}"
    return " ".join(entries) or "nothing"


def number(x: float) -> str:
    if np.isnan(x):
        return "NaN"
    return f"{float(x) + 0.0:.2g}".replace("e-0", "e-").replace("e+0", "e")  # + 0.0: −0 is 0


class Answers(NamedTuple):
    """One row of the table."""

    exact: str | None  # None where there is no exact answer to hold the others against
    by: dict[str, str]  # from each system

    @property
    def agree(self) -> bool:
        return len({text.partition(":")[0] for text in self.by.values()} - {"–"}) == 1

    def mark(self, system: str) -> str:
        """``=`` exact, ``x`` not exact; where nothing is exact, a letter for each kind of answer."""
        if self.by[system] == "–":
            return ""
        if self.exact is not None:
            return "=" if self.by[system] == self.exact else "x"
        kinds = list(dict.fromkeys(text.partition(":")[0] for text in self.by.values() if text != "–"))
        return "abcdef"[kinds.index(self.by[system].partition(":")[0])]


def ask(case: Case) -> Answers:
    """What each framework answers, and gradclip: one text if it answers the same on all frameworks."""
    right = exact(case)
    ours = dict.fromkeys(answer(clip, case) for clip in GRADCLIP.values())
    texts = {name: answer(clip, case) for name, clip in FRAMEWORKS.items()}
    texts["gradclip"] = " or ".join(text for text in ours if text != "–")
    return Answers(None if right is None else show(right), texts)


def as_text(table: Mapping[str, Answers]) -> str:
    """The table for a terminal."""
    systems = list(next(iter(table.values())).by)
    rows = [["", *systems]]
    for name, answers in table.items():
        rows.append([name, *(f"{answers.mark(s) or ' '} {answers.by[s].partition(':')[0]}" for s in systems)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (" ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


# Okabe and Ito's colours, pale enough to carry black text on light pages and on dark ones.
COLOURS = {"=": "#cfe6f5", "x": "#ffd2ad", "a": "#eeeeee", "b": "#f3d3e4", "c": "#fff3b0", "": "#ffffff"}
SIGNS = {"=": "✓", "x": "✗"}


def as_html(table: Mapping[str, Answers], caption: str) -> str:
    """The table for a page: each cell has its colour and a sign, and the table scrolls where the page is narrow."""
    systems = list(next(iter(table.values())).by)
    style = "padding:.3em .6em;border:1px solid #8a8a8a;white-space:nowrap;text-align:left"

    named = f"{style};color:#111111;background:#ffffff"

    def row(name: str, answers: Answers) -> str:
        cells = [f'<th scope="row" style="{named};position:sticky;left:0">{html.escape(name)}</th>']
        for system in systems:
            mark, text = answers.mark(system), answers.by[system].partition(":")[0]
            colour = "#ffffff" if answers.agree else COLOURS[mark]
            sign = SIGNS.get(mark, mark)
            look = f"{style};color:#111111;background:{colour}"
            shown = html.escape(f"{sign} {text}".strip()).replace(" or ", " or<br>")
            cells.append(f'<td style="{look}">{shown}</td>')
        return f"<tr>{''.join(cells)}</tr>"

    head = "".join(f'<th scope="col" style="{named}">{html.escape(name)}</th>' for name in ["case", *systems])
    body = "\n".join(row(name, answers) for name, answers in table.items())
    return (
        f'<div tabindex="0" role="region" aria-label="{html.escape(caption)}" style="overflow-x:auto">\n'
        '<table style="display:table;max-width:none;border-collapse:collapse;font-size:.82em;margin:0">\n'
        f'<caption style="color:#111111;background:#ffffff">{html.escape(caption)}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


# From NumPy to each framework, and back ------------------------------------------------------------------------------


def _once_made(grads: Sequence[Gradient], make: Callable[[Gradient], Any]) -> list[Any]:
    """What ``make`` makes of each gradient; of one listed twice, the same object twice."""
    made = {id(g): make(g) for g in grads if g is not None}
    return [make(None) if g is None else made[id(g)] for g in grads]


def _one_each(grads: Sequence[Gradient], results: Sequence[Any]) -> list[Any]:
    """The results as dense NumPy, without those of None, and one of each gradient that was listed twice."""
    kept = {id(g): r for g, r in zip(grads, results, strict=True) if g is not None}
    return [_dense(r) for r in kept.values()]


def _dense(x: Any) -> Array:
    if isinstance(x, Rows):
        return x.dense
    if isinstance(x, torch.Tensor):
        return np.asarray(x.to_dense().numpy())
    if isinstance(x, tf.IndexedSlices):
        return np.asarray(tf.convert_to_tensor(x).numpy())
    return np.zeros(1, np.float32) if x is None else np.asarray(x)


def _numpy(g: Gradient) -> Array:
    if isinstance(g, Rows):
        raise Absent
    return g  # type: ignore[return-value]  # None is for the formula to fail at


def _parameter(g: Gradient) -> torch.nn.Parameter:
    like = torch.from_numpy(_dense(g))
    parameter = torch.nn.Parameter(torch.zeros_like(like))
    if isinstance(g, Rows):
        parameter.grad = torch.sparse_coo_tensor([list(g.indices)], torch.from_numpy(g.values), (2,))  # type: ignore[arg-type]
    elif g is not None:
        parameter.grad = like.clone()
    return parameter


def _tensorflow(g: Gradient) -> Any:
    if isinstance(g, Rows):
        return tf.IndexedSlices(tf.constant(g.values), tf.constant(list(g.indices)), tf.constant([2]))
    return None if g is None else tf.constant(g)


def _jax(g: Gradient) -> Any:
    return None if g is None else jnp.asarray(_numpy(g))
