"""One file per framework, each the same small set of functions on flat lists of arrays.

Read one from top to bottom, then put another beside it: the same names, in the same order, in that framework's idiom.

The clipping rule, which each of them states once, in `_factors` or `clip_factors`: with n a norm and c its limit, an
array stays as it is, bit for bit, where n ≤ c or c = ∞; it is multiplied by c/n where n > c; and it becomes NaN where n
is not finite or c is not a number above or at 0. The norm and the limit are compared as the caller would compare them,
in the dtype of the norm that is returned; where that has overflowed although n is finite, by their exact ratio.
"""

import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

REAL = ("float16", "bfloat16", "float32", "float64")
TAKEN = (*REAL, "complex64", "complex128")
TINY = 2.0**-126  # the smallest normal float32; a factor below it would have few bits left, or none

Backend = Any  # one of the modules of this package
# The backend of each type of object seen so far, None for what is no array; those of Python are known.
BY_TYPE: dict[type, Backend] = dict.fromkeys((type(None), bool, int, float, list, tuple, dict))


class Norm(NamedTuple):
    """A norm or a limit on one: ``value``, as it is returned, and mantissa·scale, which holds where value overflows."""

    value: Any
    mantissa: Any
    scale: Any


def backend_of(x: object) -> Backend:
    """The backend that takes x, or None.

    The type of an array tells which package made it, so that no framework is imported, nor looked for, before an array
    of it is seen.
    """
    kind = type(x)
    if kind not in BY_TYPE:
        packages = _packages(kind)
        candidates: list[Backend] = []
        if "numpy" in packages:
            from . import numpy

            candidates.append(numpy)
        if "torch" in packages:
            from . import torch

            candidates.append(torch)
        if "tensorflow" in packages:
            from . import tensorflow

            candidates.append(tensorflow)
        if packages & {"jax", "jaxlib"}:
            from . import jax

            candidates.append(jax)
        BY_TYPE[kind] = next((backend for backend in candidates if backend.is_array(x)), None)
    return BY_TYPE[kind]


def _packages(kind: type) -> set[str]:
    """The packages that a type is made of: its own, or those of its bases where that is none of a framework's."""
    own = kind.__module__.partition(".")[0]
    if own in ("numpy", "torch", "tensorflow", "jax", "jaxlib"):  # a compiler cannot look up the bases
        return {own}
    return {base.__module__.partition(".")[0] for base in kind.__mro__}


def pytree_node(x: object) -> tuple[dict[str, Any], Callable[[Iterable[Any]], Any]] | None:
    """The children of a pytree that was registered with JAX, by what leads to each, and what makes it of new ones.

    None where x is a leaf to JAX, or where JAX has not been imported, and so can have registered nothing.
    """
    tree_util = sys.modules.get("jax.tree_util")
    if tree_util is None or isinstance(x, (bool, int, float, complex, str)):  # torch.compile cannot trace the question
        return None
    children, structure = tree_util.tree_flatten_with_path(x, is_leaf=lambda node: node is not x)
    if tree_util.treedef_is_leaf(structure) and structure.num_leaves == 1:
        return None
    return {tree_util.keystr(path): child for path, child in children}, structure.unflatten


def advice(x: object) -> str:
    """What to pass instead of x, if it holds an array that could be passed: the end of an error message."""
    packages = _packages(type(x))
    if "keras" in packages and hasattr(x, "value"):
        return "; pass its .value"
    if type(x).__name__ == "MaskedArray":
        return "; pass x.filled(0), in which masked elements do not count"
    if type(x).__name__ == "MaskedTensor":
        return "; pass x.to_tensor(0), in which masked elements do not count"
    if "numpy" in packages and hasattr(x, "__array__"):
        return "; pass numpy.asarray(x) if nothing of what it adds to an array matters here"
    if "torch" in packages and hasattr(x, "as_subclass"):
        return "; pass x.as_subclass(torch.Tensor) if nothing of what it adds to a tensor matters here"
    return ""
