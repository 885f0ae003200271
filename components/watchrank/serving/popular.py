"""The most watched videos of the release that serves: what is answered while Triton does not."""

import logging
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Self

from pydantic import TypeAdapter

from watchrank.deployment import model_repository
from watchrank.errors import DeploymentError, InputError
from watchrank.releases import checksum, read_manifest, release_numbers
from watchrank.serving.question import Arrays, Question, Recommendation
from watchrank.workspace import Workspace

FILE = "popular.json"
ALL = "all"
"""Key of the most watched videos of all users; the others are text ids of languages."""

_FORMAT = TypeAdapter(dict[str, list[int]])

logger = logging.getLogger(__name__)


class PopularVideos:
    """Keeps the `popular.json` of the release that answered last, found in folders of releases."""

    def __init__(self, folders: Sequence[Path] = (), serving: int | None = None) -> None:
        """Start with the release that serves, or with the newest where that is not known."""
        self._folders = folders
        self._seen: int | None = None
        self._kept: tuple[int, dict[str, list[int]]] | None = None
        numbers = [number for folder in folders for number in release_numbers(folder)]
        if numbers:
            self.follow(serving if serving in numbers else max(numbers))

    @classmethod
    def of(cls, place: Workspace) -> Self:
        """Return those of a workspace."""
        serving = model_repository.serving(place.model_repository, "recommend")
        return cls([place.pulled, place.releases], serving)

    @property
    def release(self) -> int | None:
        """The release whose videos these are; None when none is known."""
        return None if self._kept is None else self._kept[0]

    def follows(self, release: int) -> bool:
        """Tell whether `follow` was called last for this release."""
        return release == self._seen

    def follow(self, release: int) -> None:
        """Keep the videos of a release from now on; those of before when it is in no folder or is damaged."""
        self._seen = release
        for folder in self._folders:
            if (folder / f"{release:06d}").is_dir():
                try:
                    self._kept = release, _read(folder / f"{release:06d}")
                    return
                except (InputError, OSError, ValueError) as error:
                    logger.warning("Cannot fall back to the popular videos of release %d: %s", release, error)

    def recommend(
        self, user_ids: Sequence[int], question: Question, features: Arrays
    ) -> list[Recommendation]:
        """Return for each user the most watched videos in their language, then of all.

        Excluded and last watched videos are left out; diversity, the limit of channels and weights of tasks
        have no effect, and there are no seconds and scores.

        Raises:
            DeploymentError: no release is known.
        """
        if self._kept is None:
            raise DeploymentError("No popular videos are known; start with a workspace that has a release.")
        release, videos = self._kept
        excluded = {*question.excluded}
        languages = features["user_language"][:, 0].tolist()
        return [
            Recommendation(
                user_id=user_id,
                video_ids=_first(
                    question.k, [*videos.get(str(language), []), *videos[ALL]], excluded.union(watched)
                ),
                expected_watch_seconds=[],
                candidate_scores=[],
                release=release,
                fallback="triton",
            )
            for user_id, language, watched in zip(
                user_ids, languages, features["watched_video_ids"].tolist(), strict=True
            )
        ]


def _read(release: Path) -> dict[str, list[int]]:
    file = release / FILE
    if checksum(file) != read_manifest(release)["files"].get(FILE):
        raise ValueError(f"{file} is not the file of its manifest")
    videos = _FORMAT.validate_json(file.read_bytes())
    if ALL not in videos:
        raise ValueError(f"{file} has no {ALL!r}")
    return videos


def _first(k: int, videos: Sequence[int], left_out: set[int]) -> list[int]:
    return list(islice((video for video in dict.fromkeys(videos) if video not in left_out), k))
