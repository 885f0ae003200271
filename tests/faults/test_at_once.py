"""Two runs at once on the same outputs: one waits for the other, and the end is that of one run."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from watchrank.workspace import Workspace

from .conftest import Runner
from .contents import contents, left_behind
from .test_killed import STAGES

pytestmark = pytest.mark.faults

OUTPUTS = {
    "ingest": ["events"],
    "features": ["features", "feature_store"],
    "dataset": ["dataset"],
    "ranking": ["model"],
    "candidates": ["candidate_model"],
    "text": ["text_model"],
    "export": ["releases"],
}


@pytest.mark.parametrize("stage", OUTPUTS)
def test_of_two_runs_at_once_one_waits(
    stage: str,
    built: Workspace,
    runner: Runner,
    second_runner: Runner,
    watchrank: Callable[..., str],
    tmp_path: Path,
) -> None:
    command, found = STAGES[stage]
    for part in found:
        shutil.copytree(built.root / part, tmp_path / Path(part).name)
    program = watchrank(command, tmp_path)
    runs = [each.start(program) for each in (runner, second_runner)]
    assert [run.wait() for run in runs] == [0, 0], "".join(run.stderr for run in runs)
    assert any("Waiting for another process" in " ".join(run.stderr.split()) for run in runs)
    for output in OUTPUTS[stage]:
        assert contents(tmp_path / output) == contents(built.root / output)
    assert left_behind(tmp_path) == []
