"""The page on many devices says of four processes what an oracle says of one."""

import sys

import numpy as np
import oracle
import pytest
import torch.distributed as dist

from book.gpu import ranks

pytestmark = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available() or sys.platform != "linux", reason="needs gloo"
)


@pytest.fixture(scope="module")
def answers():
    return ranks.run(*ranks.CASES)


@pytest.fixture(scope="module")
def whole():
    return oracle.norm([g.double().numpy() for g in ranks.whole_gradient()], 2)


def of(answers, case, name):
    return [rank[name] for rank in answers[case]]


@pytest.mark.parametrize("case", ["copies", "pieces", "stages"])
def test_every_rank_has_the_norm_of_the_whole_gradient(answers, whole, case):
    assert len(answers[case]) == ranks.RANKS
    np.testing.assert_allclose(of(answers, case, "norm"), whole, rtol=1e-5)
    np.testing.assert_allclose(of(answers, case, "after"), ranks.C, rtol=1e-5)


def test_the_pieces_keep_their_direction(answers, whole):
    assert max(of(answers, "pieces", "turned")) < 0.1
    np.testing.assert_allclose(of(answers, "pieces", "torch"), whole, rtol=1e-5)
    assert all(ours == 1 for _, ours in of(answers, "pieces", "exchanges"))


def test_their_own_norms_are_shares(answers, whole):
    own = of(answers, "pieces_by_their_own_norm", "norm")
    np.testing.assert_allclose(oracle.norm(np.array(own), 2), whole, rtol=1e-5)
    after = of(answers, "pieces_by_their_own_norm", "after")
    np.testing.assert_allclose(after, np.sqrt(np.sum(np.minimum(own, ranks.C) ** 2)), rtol=1e-5)
    assert min(of(answers, "pieces_by_their_own_norm", "turned")) > 1


def test_clipped_summands_are_another_gradient(answers):
    assert max(of(answers, "summands", "after")) < ranks.C
    assert min(of(answers, "summands", "turned")) > 1
    norms = of(answers, "summands", "norm")
    assert max(norms) == norms[-1] > 3 * min(norms)


def test_the_environment_is_left_as_it_was(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    with ranks._quiet():
        assert ranks.os.environ["OMP_NUM_THREADS"] == "1"
        assert ranks.os.environ["GLOO_SOCKET_IFNAME"] == "lo"
    assert ranks.os.environ["OMP_NUM_THREADS"] == "3"
    assert "GLOO_SOCKET_IFNAME" not in ranks.os.environ
