"""Keras on TensorFlow: a train_step of one's own, which logs the norm, and scales the loss for mixed_float16."""

import keras
import numpy as np
import tensorflow as tf

x, y = np.ones((1, 1)), np.array([[3.0, 4.0]])


def product(target, output):
    return keras.ops.sum(target * output, axis=-1)


# [start]
import gradclip


class Clipped(keras.Sequential):
    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x=x, y=y, y_pred=self(x, training=True))
            scaled = self.optimizer.scale_loss(loss)  # without which nothing is learned in mixed_float16
        grads = tape.gradient(scaled, self.trainable_variables)
        scale = self.optimizer.scale_loss(1.0)  # the optimizer divides by it
        grads, norm = gradclip.clip_by_global_norm(grads, 1.0 * scale)
        self.optimizer.apply(grads, self.trainable_variables)
        return {"loss": loss, "norm": norm / scale}


# [end]
