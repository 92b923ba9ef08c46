"""The quickstart: each framework's loop clips, and makes the run that the page's NumPy makes, on any processor."""

import runpy

import numpy as np
import pytest

from tools.notebooks import BOOK

SNIPPETS = sorted((BOOK / "snippets").glob("quickstart_*.py"))


@pytest.fixture(scope="module")
def wrong_label():
    """book/wrong_label.py, where the snippets import it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BOOK)
        import wrong_label

        yield wrong_label


@pytest.fixture(scope="module")
def clipped(wrong_label):
    return wrong_label.train(1.0)


def test_the_gradients_are_those_of_the_loss(wrong_label):
    params = {name: value.astype(np.float64) for name, value in wrong_label.start().items()}
    rng = np.random.default_rng(0)
    x, y = rng.uniform(-1, 1, (2, 8, 1))
    _, grads = wrong_label.loss_and_gradients(params, x, y)
    for name, value in params.items():
        place = tuple(rng.integers(0, size) for size in value.shape)
        losses = []
        for shift in (1e-7, -1e-7):
            shifted = value.copy()
            shifted[place] += shift
            losses.append(wrong_label.loss_and_gradients(params | {name: shifted}, x, y)[0])
        assert grads[name][place] == pytest.approx((losses[0] - losses[1]) / 2e-7, rel=1e-4, abs=1e-8)


def test_one_wrong_label_ends_one_run_and_not_the_other(wrong_label, clipped):
    losses, norms, _ = wrong_label.train(np.inf)
    wrong = wrong_label.WRONG
    assert losses[wrong - 1] < 0.3
    assert norms[:wrong].max() < 5
    assert norms[wrong] > 100
    (gone,) = np.flatnonzero(~np.isfinite(losses))[:1]
    assert gone == wrong + 3  # the loss grows by eight decades and more in the step before: room to spare
    losses, norms, params = clipped
    assert np.isfinite(losses).all()
    assert losses[wrong + 1] < 0.3
    assert wrong_label.error(wrong_label.predict(params, wrong_label.GRID)[-1]) < 0.2


@pytest.mark.parametrize("file", SNIPPETS, ids=lambda file: file.stem.removeprefix("quickstart_"))
def test_the_loop_of_a_tab_is_the_run_of_the_page(wrong_label, clipped, file):
    after = runpy.run_path(str(file))
    _, norms, params = clipped
    if "amp" in file.stem:  # float16 has three decimal digits: another run, which learns as well
        assert wrong_label.error(after["prediction"]) < 0.2
        finite = np.isfinite(after["norms"])  # where it is not, the scaler has skipped the step
        assert finite.mean() > 0.9
        assert np.median(np.array(after["norms"])[finite]) == pytest.approx(np.median(norms), rel=0.3)
        return
    *_, prediction = wrong_label.predict(params, wrong_label.GRID)
    np.testing.assert_allclose(after["prediction"], prediction, atol=0.01)
    if "norms" in after:
        np.testing.assert_allclose(after["norms"], norms, rtol=0.05)
