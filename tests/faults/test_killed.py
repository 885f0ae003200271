"""SIGKILL at random moments of every stage: nothing broken is read, and a restart ends as if never killed."""

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from watchrank.workspace import Workspace

from .conftest import Runner, random_of
from .contents import contents, left_behind

pytestmark = pytest.mark.faults

MATERIALISE = """
from datetime import UTC, datetime
from pathlib import Path
from watchrank.feature_store import materialise, open_store

store = open_store(Path({repo!r}), Path({features!r}), Path({state!r}))
materialise(store, datetime(2026, 2, 1, tzinfo=UTC))
"""

STAGES: dict[str, tuple[str, tuple[str, ...]]] = {
    # name: its command, and what it finds in the workspace
    "ingest": ("ingest", ("log", "before/events")),
    "features": ("features", ("events", "before/features", "feature_store")),
    "materialise": ("", ("features",)),
    "dataset": ("dataset", ("events", "features", "feature_store", "dataset")),
    "ranking": ("train", ("dataset", "model")),
    "multi-task": ("train --set ranking.model=mmoe", ("dataset", "model")),
    "candidates": ("train-candidates", ("candidate_dataset", "candidate_model")),
    "text": ("train-text", ("search_dataset", "text_model")),
    "export": (
        "export",
        (
            *("features", "feature_store", "dataset", "candidate_dataset", "search_dataset"),
            *("model", "candidate_model", "text_model"),
            *("evaluation", "candidate_evaluation", "text_evaluation"),
        ),
    ),
    "refresh": ("refresh --release 1", ("features", "feature_store", "releases")),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_stage_leaves_nothing_broken_and_ends_as_an_uninterrupted_one(
    stage: str,
    built: Workspace,
    runner: Runner,
    watchrank: Callable[..., str],
    reading: Callable[[Path], AbstractContextManager[None]],
    kills: int,
    tmp_path: Path,
) -> None:
    command, found = STAGES[stage]
    random = random_of(stage)

    def prepare(name: str) -> tuple[Path, str]:
        place = Workspace(tmp_path / name)
        shutil.rmtree(place.root, ignore_errors=True)
        for part in found:
            shutil.copytree(built.root / part, place.root / Path(part).name)
        if not command:
            return place.root, MATERIALISE.format(
                repo="feature_repo", features=str(place.features), state=str(place.feature_store)
            )
        word, *options = command.split()
        return place.root, watchrank(word, place.root, *options)

    root, program = prepare("whole")
    seconds = runner.end(program)
    expected = contents(root)
    done = 0
    while done < kills:
        root, program = prepare("killed")
        with reading(root):
            for _ in range(min(random.randint(1, 4), kills - done)):
                done += runner.start(program).kill_after(random.uniform(0, seconds))
            runner.end(program)
        found_now = contents(root)
        assert found_now.keys() == expected.keys()
        other = {name: (expected[name], now) for name, now in found_now.items() if now != expected[name]}
        assert other == {}
        assert left_behind(root) == []
