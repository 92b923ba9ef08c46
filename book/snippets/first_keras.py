import keras
import numpy as np

model = keras.Sequential(
    [keras.Input((4,)), keras.layers.Dense(1, kernel_initializer="ones")]
)
x, y = 100 * np.ones((8, 4), np.float32), np.zeros((8, 1), np.float32)
# ---
import gradclip.keras


def clip(grads):
    return gradclip.clip_by_global_norm(grads, 1.0).grads


optimizer = gradclip.keras.ClippedOptimizer(keras.optimizers.SGD(0.1), clip)
model.compile(optimizer, loss="mse")
model.fit(x, y, verbose=0)
