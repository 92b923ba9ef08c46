"""What clipping means, in float64 NumPy, short enough to check by eye."""

import numpy as np


def norm(arrays, ord=2):
    moduli = np.concatenate([np.zeros(1), *(np.abs(np.asarray(a, complex)).ravel() for a in arrays)])
    peak = moduli.max()
    if not 0 < peak < np.inf or ord == np.inf:
        return peak
    return peak * ((moduli / peak) ** ord).sum() ** (1 / ord)


def clip_by_global_norm(arrays, max_norm, ord=2):
    n = norm(arrays, ord)
    return [a if n <= max_norm else a / n * max_norm for a in arrays]


def clip_by_norm(array, max_norm, ord=2, axis=None):
    if axis is None:
        return clip_by_global_norm([array], max_norm, ord)[0]
    n = np.apply_over_axes(np.sum, np.abs(array) ** ord, axis) ** (1 / ord)
    return np.where(n <= max_norm, array, array / np.where(n == 0, 1, n) * max_norm)
