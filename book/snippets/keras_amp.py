"""Keras: compile puts the loss scale outside, so that the clip sees gradients without it."""

import keras
import numpy as np

x, y = np.ones((1, 1)), np.array([[3.0, 4.0]])
y /= 4  # within float16, 65504 at most, when scaled by 32768
keras.config.set_dtype_policy("mixed_float16")


def product(target, output):
    return keras.ops.sum(target * output, axis=-1)


model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2, use_bias=False, kernel_initializer="zeros")])
# [start]
import gradclip
from gradclip.keras import ClippedOptimizer


@keras.saving.register_keras_serializable("my_package")
def clip(grads):
    return gradclip.clip_by_global_norm(grads, 1.0).grads


optimizer = keras.optimizers.SGD(learning_rate=1.0)
model.compile(ClippedOptimizer(optimizer, clip), loss=product)
model.fit(x, y, verbose=0)  # model.optimizer is LossScaleOptimizer(ClippedOptimizer(SGD))
# [end]
