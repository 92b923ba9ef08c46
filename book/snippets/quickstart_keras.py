import keras
import numpy as np
import wrong_label

model = keras.Sequential(
    [
        keras.Input((1,)),
        keras.layers.Dense(32, activation="relu"),
        keras.layers.Dense(32, activation="relu"),
        keras.layers.Dense(32, activation="relu"),
        keras.layers.Dense(1),
    ]
)
model.set_weights(list(wrong_label.start().values()))
x, y = (np.concatenate(arrays) for arrays in zip(*wrong_label.batches(), strict=True))
# ---
optimizer = keras.optimizers.SGD(0.045, global_clipnorm=1.0)
model.compile(optimizer, loss="mse")
model.fit(x, y, batch_size=32, shuffle=False, verbose=0)
# ---
prediction = np.asarray(model(wrong_label.GRID))
