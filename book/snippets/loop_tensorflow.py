import keras
import tensorflow as tf

model = keras.Sequential(
    [keras.Input((4,)), keras.layers.Dense(1, kernel_initializer="ones")]
)
batches = [(100 * tf.ones((8, 4)), tf.zeros((8, 1)))]
# ---
import gradclip

optimizer = keras.optimizers.SGD(0.1)


@tf.function
def train_step(x, y):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((model(x) - y) ** 2)
    grads = tape.gradient(loss, model.trainable_variables)
    grads, norm = gradclip.clip_by_global_norm(grads, 1.0)
    optimizer.apply_gradients(zip(grads, model.trainable_variables, strict=True))
    return loss, norm


for x, y in batches:
    loss, norm = train_step(x, y)
