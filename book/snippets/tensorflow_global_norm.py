"""TensorFlow: clip all gradients by their joint norm."""

import tensorflow as tf

w = tf.Variable([0.0, 0.0])
optimizer = tf.keras.optimizers.SGD(learning_rate=1.0)
batches = [tf.constant([3.0, 4.0])]
# [start]
import gradclip


@tf.function
def train_step(y):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(w * y)
    grads = tape.gradient(loss, [w])
    grads, norm = gradclip.clip_by_global_norm(grads, 1.0)
    optimizer.apply(grads, [w])
    return loss, norm


for y in batches:
    loss, norm = train_step(y)
# [end]
