"""A full disk, a place that cannot be written, a file cut short: a sentence, an exit code, nothing broken."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from watchrank.errors import StorageError
from watchrank.training.folders import read_model, write_model
from watchrank.workspace import Workspace

from .conftest import Run, Runner
from .contents import contents, left_behind
from .test_at_once import OUTPUTS
from .test_killed import STAGES

pytestmark = pytest.mark.faults

SPARE = 12 * 1024
"""Bytes that are left on the full disk."""


class Disk:
    """A file system in memory, whose size and right to be written can be set."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._mount("-t", "tmpfs", "tmpfs")

    def fill(self, spare: int) -> None:
        """Leave so many bytes."""
        room = os.statvfs(self.folder)
        used = (room.f_blocks - room.f_bfree) * room.f_frsize
        self._mount("-o", f"remount,size={used + spare}")

    def widen(self) -> None:
        """Leave plenty."""
        self._mount("-o", "remount,rw,size=1g")

    def protect(self) -> None:
        """Let nothing be written."""
        self._mount("-o", "remount,ro")

    def remove(self) -> None:
        """Unmount it."""
        subprocess.run(["umount", str(self.folder)], check=True)

    def _mount(self, *options: str) -> None:
        subprocess.run(["mount", *options, str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    (tmp_path / "disk").mkdir()
    disk = Disk(tmp_path / "disk")
    yield disk
    disk.remove()


def copied(built: Workspace, stage: str, root: Path, *others: str) -> None:
    for part in (*STAGES[stage][1], *others):
        shutil.copytree(built.root / part, root / Path(part).name, dirs_exist_ok=True)


def of_output(found: dict[str, Any], stage: str) -> dict[str, Any]:
    return {name: content for name, content in found.items() if name.startswith(f"{OUTPUTS[stage][0]}/")}


def fault_of(run: Run) -> str:
    """Return the one sentence of a run that failed in order."""
    assert run.wait() in range(1, 7), run.stderr
    assert "Traceback" not in run.stderr, run.stderr
    last = run.stderr.splitlines()[-1]
    assert re.match(r"\w+Error: ", last), run.stderr
    return last


@pytest.mark.parametrize("fault", ["full", "read-only"])
@pytest.mark.parametrize("stage", OUTPUTS)
def test_a_stage_that_cannot_write_says_so_and_changes_nothing(
    stage: str,
    fault: str,
    built: Workspace,
    runner: Runner,
    watchrank: Callable[..., str],
    disk: Disk,
) -> None:
    copied(built, stage, disk.folder)
    before, program = contents(disk.folder), watchrank(STAGES[stage][0], disk.folder)
    disk.fill(SPARE) if fault == "full" else disk.protect()
    told = fault_of(runner.start(program))
    assert re.search("[Ss]pace" if fault == "full" else "Read-only", told), told
    assert re.search("free disk space", told), told
    if stage != "ingest":  # which goes by day; what a reader may see of it, its manifest says
        assert of_output(contents(disk.folder), stage) == of_output(before, stage)
    disk.widen()
    runner.end(program)
    for output in OUTPUTS[stage]:
        assert contents(disk.folder / output) == contents(built.root / output)
    assert left_behind(disk.folder) == []


def test_a_model_that_does_not_fit_on_the_disk_is_told(disk: Disk) -> None:
    model = disk.folder / "model"
    write_model(model, {"weight": torch.zeros(10)}, {}, [])
    disk.fill(SPARE)
    with pytest.raises(StorageError, match=r"^Cannot write .*/model: .*[Ss]pace"):
        write_model(model, {"weight": torch.zeros(100_000)}, {}, [])
    assert read_model(model)[1]["weight"].shape == (10,)


@pytest.mark.parametrize("stage", OUTPUTS)
def test_a_file_in_the_place_of_the_folder_is_told(
    stage: str, built: Workspace, runner: Runner, watchrank: Callable[..., str], tmp_path: Path
) -> None:
    copied(built, stage, tmp_path)
    place = tmp_path / OUTPUTS[stage][0]
    shutil.rmtree(place, ignore_errors=True)
    place.write_text("not a folder")
    assert str(place) in fault_of(runner.start(watchrank(STAGES[stage][0], tmp_path)))
    assert place.read_text() == "not a folder"


CUT = {
    # what is cut, by its stage's inputs: the stage, and what it says
    "events/impressions/*/part.parquet": ("features", "Cannot read .*part.parquet.*"),
    "features/user_activity/*/part.parquet": ("dataset", "Cannot read .*part.parquet.*"),
    "dataset/train/impressions/watch_seconds.npy": ("ranking", "watch_seconds.npy.*build the dataset again"),
    "dataset/manifest.json": ("ranking", "There is no dataset in .*; run `watchrank dataset`"),
    "search_dataset/train/query.npy": ("text", "query.npy.*build the dataset again"),
    "model/weights.safetensors": ("export", "Cannot read the model .*Train it again"),
    "model/config.json": ("export", "Cannot read the model .*Train it again"),
    "feature_store/online.db": ("dataset", "The local online store cannot be used: .*delete its online.db"),
    "feature_store/registry.db": ("dataset", "The registry .*registry.db is damaged; delete it"),
}


def cut(file: Path) -> None:
    """Leave the first half of a file."""
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize("name", CUT)
def test_a_file_cut_short_is_told(
    name: str, built: Workspace, runner: Runner, watchrank: Callable[..., str], tmp_path: Path
) -> None:
    stage, said = CUT[name]
    copied(built, stage, tmp_path)
    for file in tmp_path.glob(name):
        cut(file)
    assert re.search(said, fault_of(runner.start(watchrank(STAGES[stage][0], tmp_path))))


def test_a_checkpoint_cut_short_is_not_used(
    built: Workspace, runner: Runner, watchrank: Callable[..., str], tmp_path: Path
) -> None:
    copied(built, "ranking", tmp_path)
    checkpoint, program = tmp_path / "model.checkpoint", watchrank("train", tmp_path)
    run = runner.start(program)
    deadline = time.monotonic() + 60
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert run.kill_after(0)
    cut(checkpoint)
    run = runner.start(program)
    assert run.wait() == 0, run.stderr
    assert re.search("checkpoint.* is damaged", " ".join(run.stderr.split()))
    assert contents(tmp_path / "model") == contents(built.model)


@pytest.mark.parametrize("name", ["ranking/model.onnx", "golden.json", "manifest.json"])
def test_a_release_cut_short_is_not_deployed_but_made_again(
    name: str, built: Workspace, runner: Runner, watchrank: Callable[..., str], tmp_path: Path
) -> None:
    copied(built, "export", tmp_path, "releases")
    cut(tmp_path / "releases" / "000001" / name)
    told = fault_of(runner.start(watchrank("deploy", tmp_path)))
    assert re.search("000001 is damaged|has no release|is no release", told)
    runner.end(watchrank("export", tmp_path))
    runner.end(watchrank("export", tmp_path))
    assert sorted(path.name for path in (tmp_path / "releases").glob("0*")) == ["000001", "000002"]
