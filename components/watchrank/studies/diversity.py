"""The trade-off of re-ranking: expected watch time against how unlike each other the answered videos are."""

from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from watchrank.datasets.ranking import RankingDataset
from watchrank.errors import InputError
from watchrank.evaluation.page import BLUE, ORANGE, svg
from watchrank.export.golden import recommend_requests
from watchrank.export.recommend import ReleaseGraphs
from watchrank.export.rerank import directions_of
from watchrank.graphs import checked
from watchrank.releases import release_numbers
from watchrank.schema import EXPECTED_WATCH_TIME, PAD_ID
from watchrank.studies.runs import Runs, Study

REQUESTS = 500
K = 20
WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
LIMITS = (0, 3, 2, 1)


def diversity(runs: Runs) -> Study:
    """Ask the last release for requests of the test window, with every weight of diversity and channel limit.

    Likeness is the mean cosine of the vectors of two videos of an answer.

    Raises:
        InputError: there is no release.
    """
    place = runs.place
    numbers = release_numbers(place.releases)
    if not numbers:
        raise InputError(f"{place.releases} holds no release to ask. Run `watchrank export`.")
    release = place.releases / f"{numbers[-1]:06d}"
    checked(release)
    graphs, vectors = ReleaseGraphs(release, threads=0), _Vectors(release)
    requests = recommend_requests(RankingDataset.open(place.dataset), graphs.inputs("recommend"), REQUESTS)
    requests["k"] = np.full_like(requests["k"], K)
    rows, points = [], {}
    for limit in LIMITS if "channel_limit" in requests else (0,):
        for weight in WEIGHTS if limit == 0 else (0.0, 0.3):
            asked = requests | {"diversity": np.full_like(requests["diversity"], weight)}
            if "channel_limit" in requests:
                asked["channel_limit"] = np.full_like(requests["channel_limit"], limit)
            answer = graphs.run("recommend", asked)
            videos = answer["video_ids"][:, :K]
            seconds = float(answer[EXPECTED_WATCH_TIME][:, :K].sum(axis=1).mean())
            points[weight, limit] = (vectors.likeness(videos), seconds)
            rows.append(
                {
                    "diversity": f"{weight:.1f}",
                    "channel limit": str(limit or "none"),
                    f"expected seconds of {K} videos": f"{seconds:.0f}",
                    "of the order by seconds": f"{seconds / points[0.0, 0][1]:.1%}",
                    "mean cosine of two videos": f"{points[weight, limit][0]:.3f}",
                }
            )
    return Study(
        "Expected watch time against diversity",
        "Answers re-ranked by maximal marginal relevance, and with a limit of videos of one channel.",
        rows,
        f"{REQUESTS} requests of the test window, answers of {K} videos, release {numbers[-1]}.",
        [svg("One point a setting", partial(_plot, points=points))],
    )


class _Vectors:
    """The directions of the videos' vectors, as the release re-ranks by them."""

    def __init__(self, release: Path) -> None:
        self.ids, self.directions = directions_of(release / "rerank" / "model.onnx")

    def likeness(self, videos: np.ndarray) -> float:
        """Return the mean cosine of two videos of an answer [B, K], over all answers."""
        found = []
        for answer in videos:
            own = self.directions[np.searchsorted(self.ids, answer[answer != PAD_ID])]
            pairs = len(own) * (len(own) - 1)
            if pairs:
                found.append((np.square(own.sum(axis=0)).sum() - len(own)) / pairs)
        return float(np.mean(found))


def _plot(axes: Axes, points: dict[tuple[float, int], tuple[float, float]]) -> None:
    free = [point for (_, limit), point in points.items() if limit == 0]
    limited = {limit: point for (weight, limit), point in points.items() if limit and weight == 0}
    axes.plot(*zip(*free, strict=True), "o-", color=BLUE, label="weight of diversity 0 (right) to .9")
    if limited:
        axes.plot(*zip(*limited.values(), strict=True), "s", color=ORANGE, label="channel limit 3, 2, 1")
    axes.set(xlabel="mean cosine of two videos", ylabel=f"expected seconds of {K} videos", ylim=(0, None))
    axes.legend(frameon=False)


STUDIES = {"diversity": diversity}
