"""NumPy: clip once, after the last micro-batch, what is divided by their number."""

import numpy as np

w = np.zeros(2)
batches = [np.array([3.0, 4.0])]
micro_batches = 4
batches *= micro_batches


def gradient_of(w, y):
    """The gradient of the loss w · y."""
    return y.copy()


# [start]
import gradclip

total = np.zeros_like(w)
for i, y in enumerate(batches):
    total += gradient_of(w, y) / micro_batches
    if (i + 1) % micro_batches == 0:
        norm = gradclip.clip_by_global_norm_(total, 1.0)
        w -= 1.0 * total
        total[:] = 0.0
# [end]
