"""Gradient clipping that gives the same answer in NumPy, PyTorch, TensorFlow and JAX."""

from . import thresholds
from .history import NormHistory
from .rules import (
    Clipped,
    NonFiniteGradientError,
    clip_adaptive,
    clip_adaptive_,
    clip_by_block_rms,
    clip_by_block_rms_,
    clip_by_global_norm,
    clip_by_global_norm_,
    clip_by_norm,
    clip_by_norm_,
    clip_by_value,
    clip_by_value_,
    clip_per_example,
    global_norm,
    leaf_norms,
)

__version__ = "0.1.0"

__all__ = [
    "Clipped",
    "NonFiniteGradientError",
    "NormHistory",
    "clip_adaptive",
    "clip_adaptive_",
    "clip_by_block_rms",
    "clip_by_block_rms_",
    "clip_by_global_norm",
    "clip_by_global_norm_",
    "clip_by_norm",
    "clip_by_norm_",
    "clip_by_value",
    "clip_by_value_",
    "clip_per_example",
    "global_norm",
    "leaf_norms",
    "thresholds",
]
