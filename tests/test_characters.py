"""Part III's character models: their text, their loss, and that no character sees those after it."""

from math import inf, log

import numpy as np
import pytest
import torch

from book.tuning import characters

ALPHABET, CODES = characters.read()
MODELS = [characters.GRU, characters.Transformer]
each_model = pytest.mark.parametrize("model", MODELS)


def test_the_text_is_plain_and_as_it_was():
    text = "".join(ALPHABET[code] for code in CODES)
    assert text == characters.TEXT.read_text(encoding="utf-8")
    assert text.isascii()
    assert len(text) == 81331  # another text gives other numbers on the page
    assert "".join(sorted(set(text))) == ALPHABET


def test_frequencies_only_is_the_entropy():
    assert characters.frequencies_only(torch.tensor([0, 1, 2, 4] * 5)) == pytest.approx(log(4))
    assert characters.frequencies_only(torch.tensor([0, 0, 0, 1])) == pytest.approx(0.25 * log(4) + 0.75 * log(4 / 3))


def test_batches_are_pieces_of_the_text_the_same_for_the_same_seed():
    text = "".join(ALPHABET[code] for code in CODES)
    pieces = characters.batches(CODES, 3, batch=2, length=10)
    assert pieces.shape == (3, 2, 11)
    assert all("".join(ALPHABET[code] for code in piece) in text for piece in pieces.flatten(0, 1))
    assert torch.equal(pieces, characters.batches(CODES, 3, batch=2, length=10))
    assert not torch.equal(pieces, characters.batches(CODES, 3, batch=2, length=10, seed=1))


def test_the_last_characters_of_the_text_can_be_drawn():
    pieces = characters.batches(torch.arange(5), 50, batch=1, length=3)
    assert {tuple(piece) for piece in pieces[:, 0].tolist()} == {(0, 1, 2, 3), (1, 2, 3, 4)}


@each_model
def test_the_same_seed_gives_the_same_parameters(model):
    one, same, other = (torch.cat([p.flatten() for p in model(74, seed=seed).parameters()]) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@each_model
def test_an_untrained_model_hesitates_between_all_characters(model):
    loss = characters.loss_of(model(len(ALPHABET)), characters.batches(CODES, 1)[0])
    assert loss.item() == pytest.approx(log(len(ALPHABET)), rel=0.15)


@each_model
def test_a_character_sees_those_before_it_and_none_after_it(model):
    codes = torch.randint(74, (2, 20), generator=torch.Generator().manual_seed(0))
    changed = codes.clone()
    changed[:, 10] = (codes[:, 10] + 1) % 74
    before, after = (model(74)(c) for c in (codes, changed))
    assert torch.allclose(before[:, :10], after[:, :10], atol=1e-6)
    assert ((before[:, 10:] - after[:, 10:]).abs().amax(dim=-1) > 1e-4).all()


@each_model
def test_training_lowers_the_loss(model):
    net = model(len(ALPHABET), units=32)
    pieces = characters.batches(CODES, 30, batch=8, length=16)
    run = characters.train(net, torch.optim.Adam(net.parameters(), lr=0.01), pieces)
    assert len(run.losses) == len(run.history) == 30
    assert run.losses[-5:].mean() < run.losses[0] - 0.8
    assert run.history.clip_fraction == 0


def test_the_update_is_clipped_and_the_norm_recorded_before():
    net = characters.GRU(len(ALPHABET), units=16)
    start = torch.cat([p.detach().flatten() for p in net.parameters()])
    run = characters.train(net, torch.optim.SGD(net.parameters(), lr=2.0), characters.batches(CODES, 1), max_norm=0.01)
    end = torch.cat([p.detach().flatten() for p in net.parameters()])
    assert (end - start).norm().item() == pytest.approx(0.02, rel=1e-3)
    assert run.history.norms[0] > 0.1
    assert run.history.max_norms == [0.01]


def test_a_run_ends_at_the_first_loss_that_is_not_finite():
    net = characters.GRU(len(ALPHABET), units=8)
    pieces = characters.batches(CODES, 6, batch=2, length=8)
    run = characters.train(net, torch.optim.SGD(net.parameters(), lr=inf), pieces)
    assert len(run.losses) == 2
    assert np.isnan(run.losses[-1])


@each_model
def test_writing_goes_on_with_likely_characters(model):
    net = model(len(ALPHABET), units=16)
    with torch.no_grad():
        net.scores.bias[ALPHABET.index("e")] = 1000
    assert characters.write(net, ALPHABET, "The ", 60) == "e" * 60
    with torch.no_grad():
        net.scores.bias.zero_()
    drawn = characters.write(net, ALPHABET, "The ", 60, seed=1)
    assert drawn == characters.write(net, ALPHABET, "The ", 60, seed=1) != characters.write(net, ALPHABET, "The ", 60)
