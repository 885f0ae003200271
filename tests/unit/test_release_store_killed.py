"""Whenever a push or a pull is killed, what the store names to serve is whole."""

import json
import random
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from functools import partial

import pytest
from pyarrow.fs import FileSelector, FileSystem

from watchrank.deployment.release_store import ReleaseStore
from watchrank.releases import checksums, verify

FILES = 12
KILLS = 6
RANDOM = random.Random(8)

PUSH = """
import sys
from pathlib import Path
from watchrank.deployment.release_store import ReleaseStore

store = ReleaseStore(sys.argv[1])
store.serve(store.push(Path(sys.argv[2])))
"""
PULL = """
import sys
from pathlib import Path
from watchrank.deployment.release_store import ReleaseStore

ReleaseStore(sys.argv[1]).pull(1, Path(sys.argv[2]))
"""


def make_release(folder, number):
    for part in range(FILES):
        (folder / f"model_{part}").mkdir(parents=True)
        (folder / f"model_{part}" / "model.onnx").write_bytes(bytes([number]) * 300_000)
    manifest = {"release": number, "endpoints": ["model_0"], "files": checksums(folder)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(params=["folder", "s3"])
def store(request, tmp_path):
    """A store that holds release 1, and names it."""
    url = str(tmp_path / "store") if request.param == "folder" else request.getfixturevalue("s3")
    store = ReleaseStore(url)
    store.push(make_release(tmp_path / "1", 1))
    store.serve(1)
    return store


def files_of(url, number):
    """Return how many files of a release the store has."""
    files, root = FileSystem.from_uri(url if "://" in url else f"file://{url}")
    selector = FileSelector(f"{root}/releases/{number:06d}", allow_not_found=True, recursive=True)
    return sum(info.is_file for info in files.get_file_info(selector))


def killed_at(program, arguments, count, number):
    """Run a program and kill it once it has written so many files; return whether it was killed in time."""
    with subprocess.Popen([sys.executable, "-c", program, *map(str, arguments)]) as running:
        written = 0
        while written < number and running.poll() is None:
            with suppress(FileNotFoundError):  # a folder was renamed while it was listed
                written = count()
        running.kill()
    assert running.returncode in (0, -signal.SIGKILL)
    return running.returncode != 0


def test_when_a_push_is_killed_the_former_release_serves_whole(store, tmp_path):
    numbers, killed = range(2, 2 + KILLS), 0
    for number in numbers:
        former, release = store.serving(), make_release(tmp_path / str(number), number)
        count = partial(files_of, store.url, number)
        killed += killed_at(PUSH, [store.url, release], count, RANDOM.randrange(FILES))
        assert store.serving() in (former, number)
        pulled = store.pull(store.serving(), tmp_path / f"pulled_{number}")
        assert verify(pulled)["release"] == store.serving()
    assert killed
    for number in numbers:
        store.push(tmp_path / str(number))
        verify(store.pull(number, tmp_path / "pulled"))


def test_when_a_pull_is_killed_no_part_of_a_release_is_taken_for_one(s3, tmp_path):
    store, pulled, killed = ReleaseStore(s3), tmp_path / "pulled", 0
    store.push(make_release(tmp_path / "1", 1))
    for number in RANDOM.sample(range(1, FILES), 3):
        shutil.rmtree(pulled, ignore_errors=True)
        killed += killed_at(PULL, [s3, pulled], lambda: len([*pulled.rglob("*.onnx")]), number)
        if (pulled / "000001").exists():
            verify(pulled / "000001")
        verify(store.pull(1, pulled))
    assert killed
