import tensorflow as tf
import wrong_label

params = [tf.Variable(value) for value in wrong_label.start().values()]
norms = []


def model(x):
    *hidden, (weight, bias) = zip(params[::2], params[1::2], strict=True)
    for w, b in hidden:
        x = tf.nn.relu(x @ w + b)
    return x @ weight + bias


# ---
optimizer = tf.keras.optimizers.SGD(0.045)
optimizer.build(params)


@tf.function
def step(x, y):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((model(x) - y) ** 2)
    grads = tape.gradient(loss, params)
    grads, norm = tf.clip_by_global_norm(grads, 1.0)
    optimizer.apply(grads, params)
    return norm


for x, y in wrong_label.batches():
    norms.append(step(x, y).numpy())
# ---
prediction = model(wrong_label.GRID).numpy()
