import math

import numpy as np
import pytest

from watchrank.evaluation.graded import graded_metrics


def test_metrics_are_those_computed_by_hand():
    """Ranked, the grades are 0, 2, 0, 1."""
    found = graded_metrics(np.array([0.1, 0.9, 0.5, 0.7]), np.array([1, 0, 0, 2]))
    best = 3 + 1 / math.log2(3)
    assert found["ndcg@1"] == 0
    assert found["ndcg@3"] == pytest.approx(3 / math.log2(3) / best)
    assert found["ndcg@10"] == pytest.approx((3 / math.log2(3) + 1 / math.log2(5)) / best)
    assert found["map"] == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert found["mrr"] == 1 / 2


def test_a_perfect_order_is_1_and_ties_bring_no_luck():
    assert set(graded_metrics(np.array([3.0, 2, 1]), np.array([2, 1, 0])).values()) == {1.0}
    assert graded_metrics(np.zeros(4), np.array([1, 0, 0, 0]))["mrr"] == 1 / 4
