"""Models that write text one character after the other, small enough for two cores: a GRU and a Transformer.

Both take codes of shape (batch, length) and give scores of shape (batch, length, alphabet): what comes after each
character. The text is this book's own prose, as it was once; nothing is downloaded.
"""

from collections.abc import Iterable
from math import inf, isfinite
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from gradclip import NormHistory, clip_by_global_norm_

TEXT = Path(__file__).with_name("text.txt")


class Run(NamedTuple):
    losses: npt.NDArray[np.float64]  # the mean of each step's batch, in nats per character
    history: NormHistory


def read(path: Path = TEXT) -> tuple[str, Tensor]:
    """The alphabet, sorted, and the text as places in it."""
    text = path.read_text(encoding="utf-8")
    alphabet = "".join(sorted(set(text)))
    place = {character: i for i, character in enumerate(alphabet)}
    return alphabet, torch.tensor([place[character] for character in text])


def frequencies_only(codes: Tensor) -> float:
    """The loss of who knows how frequent each character is, and nothing else: the entropy, in nats."""
    share = torch.bincount(codes).double() / len(codes)
    share = share[share > 0]
    return float(-(share * share.log()).sum())


def batches(codes: Tensor, steps: int, *, batch: int = 32, length: int = 48, seed: int = 0) -> Tensor:
    """Pieces of the text from random places, of shape (steps, batch, length + 1)."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(codes) - length, (steps, batch, 1), generator=generator)
    return codes[starts + torch.arange(length + 1)]


def initialise(model: nn.Module, seed: int) -> None:
    """Matrices with Xavier's normal numbers, embeddings with small ones, biases 0 and gains 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            nn.init.constant_(parameter, float("norm" in name and name.endswith("weight")))
        elif "embed" in name:
            nn.init.normal_(parameter, std=0.1, generator=generator)
        else:
            nn.init.xavier_normal_(parameter, generator=generator)


class GRU(nn.Module):
    def __init__(self, alphabet: int, units: int = 64, seed: int = 0) -> None:
        super().__init__()
        self.embed = nn.Embedding(alphabet, units)
        self.gru = nn.GRU(units, units, batch_first=True)
        self.scores = nn.Linear(units, alphabet)
        initialise(self, seed)

    def forward(self, codes: Tensor) -> Tensor:
        states: Tensor = self.gru(self.embed(codes))[0]
        scores: Tensor = self.scores(states)
        return scores


class Block(nn.Module):
    """Attention and two dense layers, each beside a path that leads past it, with its norm in front."""

    def __init__(self, units: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(units), nn.LayerNorm(units)
        self.qkv = nn.Linear(units, 3 * units)
        self.out = nn.Linear(units, units)
        self.dense = nn.Sequential(nn.Linear(units, 2 * units), nn.GELU(), nn.Linear(2 * units, units))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, units = x.shape
        split = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, units // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        heads = scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(heads.transpose(1, 2).reshape(batch, length, units))
        x = x + self.dense(self.norm2(x))
        return x


class Transformer(nn.Module):
    def __init__(self, alphabet: int, units: int = 64, heads: int = 4, blocks: int = 2, reach: int = 48, seed: int = 0):
        super().__init__()
        self.reach = reach  # how many characters it sees
        self.embed = nn.Embedding(alphabet, units)
        self.embed_place = nn.Embedding(reach, units)
        self.blocks = nn.Sequential(*(Block(units, heads) for _ in range(blocks)))
        self.norm = nn.LayerNorm(units)
        self.scores = nn.Linear(units, alphabet)
        initialise(self, seed)

    def forward(self, codes: Tensor) -> Tensor:
        x = self.embed(codes) + self.embed_place(torch.arange(codes.shape[1]))
        scores: Tensor = self.scores(self.norm(self.blocks(x)))
        return scores


def loss_of(model: nn.Module, piece: Tensor) -> Tensor:
    """The mean cross-entropy of each next character, in nats."""
    return cross_entropy(model(piece[:, :-1]).flatten(0, 1), piece[:, 1:].flatten())


def train(model: nn.Module, optimizer: torch.optim.Optimizer, pieces: Iterable[Tensor], max_norm: float = inf) -> Run:
    """One step for each batch; ends early where the loss is not finite."""
    losses: list[float] = []
    history = NormHistory()
    for piece in pieces:
        optimizer.zero_grad()
        loss = loss_of(model, piece)
        loss.backward()
        norm = clip_by_global_norm_([p.grad for p in model.parameters()], max_norm)
        optimizer.step()
        losses.append(loss.item())
        history.record(norm, max_norm)
        if not isfinite(losses[-1]):
            break
    return Run(np.array(losses), history)


@torch.no_grad()
def write(model: nn.Module, alphabet: str, prompt: str, length: int, *, seed: int = 0, reach: int = 48) -> str:
    """What the model goes on with, each character drawn with the probability that the model gives it."""
    generator = torch.Generator().manual_seed(seed)
    codes = [alphabet.index(character) for character in prompt]
    for _ in range(length):
        scores = model(torch.tensor([codes[-reach:]]))[0, -1]
        codes.append(int(torch.multinomial(scores.softmax(0), 1, generator=generator)))
    return "".join(alphabet[code] for code in codes[len(prompt) :])
