import wrong_label
from wrong_label import loss_and_gradients

params = wrong_label.start()
norms = []
# ---
import gradclip

for x, y in wrong_label.batches():
    loss, grads = loss_and_gradients(params, x, y)
    grads, norm = gradclip.clip_by_global_norm(grads, max_norm=1.0)
    for name in params:
        params[name] -= 0.045 * grads[name]
    norms.append(norm)
# ---
*_, prediction = wrong_label.predict(params, wrong_label.GRID)
