"""TensorFlow: with a loss scale, clip inside the optimizer, which divides it out."""

import tensorflow as tf

w = tf.Variable([0.0, 0.0])
optimizer = tf.keras.optimizers.SGD(learning_rate=1.0)
batches = [tf.constant([3.0, 4.0])]
batches = [y / 4 for y in batches]  # within float16, 65504 at most, when scaled by 32768
# [start]
import gradclip
from gradclip.keras import ClippedOptimizer


def clip(grads):
    return gradclip.clip_by_global_norm(grads, 1.0).grads


optimizer = tf.keras.optimizers.LossScaleOptimizer(ClippedOptimizer(optimizer, clip))


@tf.function
def train_step(y):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.cast(w, tf.float16) * y)
        scaled = optimizer.scale_loss(loss)
    optimizer.apply(tape.gradient(scaled, [w]), [w])
    return loss


for y in batches:
    loss = train_step(tf.cast(y, tf.float16))
# [end]
