"""NumPy: clip every element of the gradients."""

import numpy as np

w = np.zeros(2)
batches = [np.array([3.0, 4.0])]


def gradient_of(w, y):
    """The gradient of the loss w · y."""
    return y.copy()


# [start]
import gradclip

for y in batches:
    grads = [gradient_of(w, y)]
    gradclip.clip_by_value_(grads, 1.0)  # in place
    w -= 1.0 * grads[0]
# [end]
