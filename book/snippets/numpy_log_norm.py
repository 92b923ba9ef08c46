"""NumPy: log the norm before clipping, and how often it clips."""

import numpy as np

w = np.zeros(2)
batches = [np.array([3.0, 4.0])]


def gradient_of(w, y):
    """The gradient of the loss w · y."""
    return y.copy()


# [start]
import gradclip

history = gradclip.NormHistory()
for y in batches:
    grads = [gradient_of(w, y)]
    norm = gradclip.clip_by_global_norm_(grads, 1.0)
    history.record(norm, max_norm=1.0)
    w -= 1.0 * grads[0]
print(history.summary())
# [end]
