"""The frameworks as the tests see them: make an array, read it back, and what each can do."""

import contextlib
import os
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import tensorflow as tf
import torch

NARROW = ("float16", "bfloat16", "float32")
WIDE = ("float64", "complex128")


@dataclass(frozen=True)
class System:
    """One framework. ``dtypes`` are those it has; JAX has double precision only where it is switched on."""

    name: str
    in_place: bool
    context: Any = contextlib.nullcontext
    dtypes: tuple[str, ...] = (*NARROW, "complex64", *WIDE)

    @property
    def reals(self):
        return [d for d in self.dtypes if not d.startswith("complex")]

    def array(self, values, dtype="float32"):
        with np.errstate(over="ignore"):
            values = np.array(values).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
        if self.name == "numpy":
            return values
        if self.name == "torch":
            if dtype == "bfloat16":
                return torch.from_numpy(values.astype("float32")).to(torch.bfloat16)
            return torch.from_numpy(values)
        return tf.constant(values) if self.name == "tensorflow" else jnp.asarray(values)

    def is_own(self, x):
        kinds = {"numpy": (np.ndarray, np.generic), "torch": torch.Tensor, "tensorflow": tf.Tensor}
        return isinstance(x, kinds.get(self.name, jax.Array))


SYSTEMS = [
    System("numpy", in_place=True),
    System("torch", in_place=True),
    System("tensorflow", in_place=False),
    System("jax", in_place=False, dtypes=(*NARROW, "complex64")),
    System("jax64", in_place=False, context=lambda: jax.enable_x64(True)),
]


def values(x):
    """An array of any framework in float64 (or complex128) NumPy."""
    if isinstance(x, torch.Tensor):
        x = x.detach().resolve_conj()
        x = x.double() if x.dtype == torch.bfloat16 else x
    if isinstance(x, tf.Tensor):
        x = x.numpy()  # TensorFlow's 0-d bfloat16 tensors do not convert by themselves
    x = np.asarray(x)
    return x.astype(np.complex128 if x.dtype.kind == "c" else np.float64)


def dtype_name(x):
    return str(x.dtype.name) if hasattr(x.dtype, "name") else str(x.dtype).removeprefix("torch.")


def bits(x):
    """The bytes of an array, to tell whether it is what it was."""
    if isinstance(x, torch.Tensor):
        return b"" if x.numel() == 0 else x.detach().reshape(-1).clone().view(torch.uint8).numpy().tobytes()
    return np.asarray(x.numpy() if isinstance(x, tf.Tensor) else x).tobytes()
