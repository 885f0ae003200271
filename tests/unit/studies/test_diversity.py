import numpy as np
import pytest

from watchrank.errors import InputError
from watchrank.studies.diversity import K, _Vectors, diversity
from watchrank.studies.runs import Runs
from watchrank.workspace import Workspace


def test_more_diversity_costs_seconds_and_makes_answers_less_alike(released, trained):
    rows = diversity(Runs(trained.place, (), 1)).rows
    free = {row["diversity"]: row for row in rows if row["channel limit"] == "none"}
    seconds = [float(row[f"expected seconds of {K} videos"]) for row in free.values()]
    alike = [float(row["mean cosine of two videos"]) for row in free.values()]
    assert seconds == sorted(seconds, reverse=True)
    assert alike[0] > alike[5]
    assert {row["channel limit"] for row in rows} == {"none", "3", "2", "1"}


def test_likeness_is_the_mean_cosine_of_two_videos():
    vectors = object.__new__(_Vectors)
    vectors.ids = np.array([3, 5, 9])
    vectors.directions = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]], np.float32)
    assert vectors.likeness(np.array([[3, 5, -1], [3, 9, 5]])) == pytest.approx((0.6 + 1.4 / 3) / 2)


def test_without_a_release_there_is_nothing_to_ask(tmp_path):
    with pytest.raises(InputError, match="holds no release"):
        diversity(Runs(Workspace(tmp_path), (), 1))
