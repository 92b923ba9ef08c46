"""One file per framework, each the same small set of functions on flat lists of arrays.

Read one from top to bottom, then put another beside it: the same names, in the same order, in that framework's idiom.
"""

import sys
from typing import Any

REAL = ("float16", "bfloat16", "float32", "float64")
TAKEN = (*REAL, "complex64", "complex128")

Backend = Any  # one of the modules of this package
BY_TYPE: dict[type, Backend] = {}  # the backend of each type of object seen so far, None for what is no array


def backend_of(x: object) -> Backend:
    """The backend that takes x, or None. A framework that was never imported can have made no array."""
    kind = type(x)
    if kind not in BY_TYPE:
        from . import numpy

        candidates: list[Backend] = [numpy]
        if "torch" in sys.modules:
            from . import torch

            candidates.append(torch)
        if "tensorflow" in sys.modules:
            from . import tensorflow

            candidates.append(tensorflow)
        if "jax" in sys.modules:
            from . import jax

            candidates.append(jax)
        BY_TYPE[kind] = next((backend for backend in candidates if backend.is_array(x)), None)
    return BY_TYPE[kind]
