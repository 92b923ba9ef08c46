"""The gradients that are clipped: the shapes of two real models, and many small arrays."""

from math import prod

Shapes = list[tuple[int, ...]]


def gpt2_small() -> Shapes:
    """Radford et al. 2019: 12 blocks of width 768. The output layer is the token embedding, so it counts once."""
    d = 768
    norm = [(d,), (d,)]
    attention = [(d, 3 * d), (3 * d,), (d, d), (d,)]
    mlp = [(d, 4 * d), (4 * d,), (4 * d, d), (d,)]
    return [(50257, d), (1024, d), *12 * (norm + attention + norm + mlp), *norm]


def lstm() -> Shapes:
    """The medium language model of Zaremba et al. 2014, in PyTorch's layout: 10000 words, 2 layers of 650 cells."""
    words, d = 10000, 650
    layer = [(4 * d, d), (4 * d, d), (4 * d,), (4 * d,)]
    return [(words, d), *2 * layer, (words, d), (words,)]


SHAPES: dict[str, Shapes] = {
    "gpt2-small": gpt2_small(),
    "lstm": lstm(),
    "1000x64x64": 1000 * [(64, 64)],
    "2000x512": 2000 * [(512,)],
    "tiny": [(64, 64), (512,), ()],  # to try the harness
    "one-billion": [*59 * [(4096, 4096)], (10_144_256,)],  # for a GPU: elements, in arrays as large models have them
}
SETS = tuple(SHAPES)[:4]  # those that bars are set on


def elements(name: str) -> int:
    return sum(map(prod, SHAPES[name]))
