"""One class per framework: gradclip and what its users call today, on the same gradients.

``gradclip`` and ``own`` clip to a threshold, ``norms`` tells what each measures, and ``compile`` does ahead of a call
what only the first one needs. Where writing in place is possible, ``read`` and ``write`` pass over the first array
once: the floor under every function that must see, or change, each element.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

import gradclip

Arrays = Sequence[np.ndarray]


class NumPy:
    own_name = "np.sqrt(sum((g**2).sum())), then g *= min(1, c/n) always"
    needs = ("numpy",)
    in_place = True

    def __init__(self, arrays: Arrays) -> None:
        self.grads = list(arrays)

    def gradclip(self, c: float) -> Any:
        return gradclip.clip_by_global_norm_(self.grads, c)

    def functional(self, c: float) -> Any:
        return gradclip.clip_by_global_norm(self.grads, c)

    def own(self, c: float) -> Any:
        n = np.sqrt(sum((g**2).sum() for g in self.grads))
        for g in self.grads:
            g *= min(1.0, c / n)
        return n

    def norms(self) -> tuple[Any, Any]:
        return self.gradclip(np.inf), self.own(np.inf)

    def compile(self) -> None:
        pass

    def read(self) -> Any:
        return np.dot(self.grads[0], self.grads[0])

    def write(self) -> Any:
        return np.multiply(self.grads[0], 1.0, out=self.grads[0])


class PyTorch:
    own_name = "torch.nn.utils.clip_grad_norm_"
    needs = ("torch",)
    in_place = True

    def __init__(self, arrays: Arrays) -> None:
        import torch

        self.clip_grad_norm_ = torch.nn.utils.clip_grad_norm_
        self.params = [torch.nn.Parameter(torch.empty(a.shape)) for a in arrays]
        for p, a in zip(self.params, arrays, strict=True):
            p.grad = torch.from_numpy(a)

    def gradclip(self, c: float) -> Any:
        # Collecting the gradients is part of the job: clip_grad_norm_ does it too.
        return gradclip.clip_by_global_norm_([p.grad for p in self.params], c)

    def functional(self, c: float) -> Any:
        return gradclip.clip_by_global_norm([p.grad for p in self.params], c)

    def own(self, c: float) -> Any:
        return self.clip_grad_norm_(self.params, c)

    def norms(self) -> tuple[Any, Any]:
        return self.gradclip(np.inf), self.own(np.inf)

    def compile(self) -> None:
        pass

    def read(self) -> Any:
        return self.params[0].grad.sum()

    def write(self) -> Any:
        return self.params[0].grad.mul_(1.0)


class TensorFlow:
    own_name = "tf.clip_by_global_norm in tf.function"
    needs = ("tensorflow",)
    in_place = False

    def __init__(self, arrays: Arrays) -> None:
        import tensorflow as tf

        grads = [tf.constant(a) for a in arrays]
        # Captured, for in training they are made inside the function: to hand over 2000 arguments takes Python longer
        # than the clip. All are returned, so that nothing is pruned.
        gradclips = tf.function(lambda c: gradclip.clip_by_global_norm(grads, c))
        own = tf.function(lambda c: tf.clip_by_global_norm(grads, c))
        self.gradclip = self.functional = lambda c: gradclips(tf.constant(c))
        self.own = lambda c: own(tf.constant(c))
        self.compile = lambda: [f.get_concrete_function(tf.constant(1.0)) for f in (gradclips, own)]

    def norms(self) -> tuple[Any, Any]:
        return self.gradclip(1.0).norm, self.own(1.0)[1]


class JAX:
    own_name = "optax.clip_by_global_norm under jit"
    needs = ("jax", "optax")
    in_place = False

    def __init__(self, arrays: Arrays) -> None:
        import jax
        import optax

        grads = [jax.numpy.array(a) for a in arrays]
        wait = jax.block_until_ready
        gradclips = jax.jit(gradclip.clip_by_global_norm)
        own = jax.jit(lambda g, c: optax.clip_by_global_norm(c).update(g, optax.EmptyState())[0])
        self.gradclip = self.functional = lambda c: wait(gradclips(grads, c))
        self.own = lambda c: wait(own(grads, c))
        self.norms = lambda: (self.gradclip(1.0).norm, jax.jit(optax.tree.norm)(grads))
        self.compile = lambda: [f.lower(grads, 1.0).compile() for f in (gradclips, own)]


FRAMEWORKS: dict[str, Any] = {"numpy": NumPy, "torch": PyTorch, "tensorflow": TensorFlow, "jax": JAX}
