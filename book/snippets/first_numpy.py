import numpy as np

w, b = np.ones(4), np.zeros(())
x, y = 100 * np.ones((8, 4)), np.zeros(8)
# ---
import gradclip

error = x @ w + b - y
grads = {"w": 2 * error @ x / len(x), "b": 2 * error.mean()}
grads, norm = gradclip.clip_by_global_norm(grads, max_norm=1.0)
w -= 0.1 * grads["w"]
b -= 0.1 * grads["b"]
