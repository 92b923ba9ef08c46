"""TensorFlow: clip once, after the last micro-batch, what is divided by their number."""

import tensorflow as tf

w = tf.Variable([0.0, 0.0])
optimizer = tf.keras.optimizers.SGD(learning_rate=1.0)
batches = [tf.constant([3.0, 4.0])]
micro_batches = 4
batches *= micro_batches
# [start]
import gradclip

total = [tf.zeros_like(w)]
for i, y in enumerate(batches):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(w * y) / micro_batches
    total = [t + g for t, g in zip(total, tape.gradient(loss, [w]), strict=True)]
    if (i + 1) % micro_batches == 0:
        grads, norm = gradclip.clip_by_global_norm(total, 1.0)
        optimizer.apply(grads, [w])
        total = [tf.zeros_like(w)]
# [end]
