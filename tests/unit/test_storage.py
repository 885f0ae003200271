"""Writes are whole or not there, and one at a time, whenever a process is killed."""

import errno
import logging
import shutil
import signal
import subprocess
import sys
from threading import Event, Thread

import pytest

from watchrank import storage
from watchrank.errors import StorageError
from watchrank.storage import atomic_path, read_whole, reading, writing

KILLED = """
import ctypes, os, signal, shutil, sys
from pathlib import Path
from watchrank import storage

steps = int(sys.argv[2])

def counted(function):
    def call(*arguments, **options):
        global steps
        steps -= 1
        if steps < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call

if sys.argv[3] == "two steps":
    storage._exchanged = lambda fresh, target: False
storage._exchanged = counted(storage._exchanged)
for place, name in [(Path, "replace"), (Path, "rename"), (shutil, "rmtree")]:
    setattr(place, name, counted(getattr(place, name)))
with storage.writing(Path(sys.argv[1])), storage.atomic_path(Path(sys.argv[1])) as fresh:
    fresh.mkdir()
    for part in "ab":
        (fresh / part).write_text("new")
"""


def write(folder, text):
    folder.mkdir(parents=True)
    for part in "ab":
        (folder / part).write_text(text)


def replace(folder, fault=None):
    with atomic_path(folder) as fresh:
        write(fresh, "new")
        if fault:
            raise fault


def read(folder):
    return {(folder / part).read_text() for part in "ab"}


@pytest.mark.parametrize("way", ["one step", "two steps"])
def test_a_folder_that_is_replaced_is_whole_whenever_the_process_is_killed(tmp_path, way):
    target, found = tmp_path / "folder", []
    for steps in range(10):
        shutil.rmtree(target, ignore_errors=True)
        write(target, "old")
        command = [sys.executable, "-c", KILLED, str(target), str(steps), way]
        done = subprocess.run(command, check=False)
        assert done.returncode in (0, -signal.SIGKILL)
        assert way == "two steps" or target.is_dir(), "it is never away"
        with writing(target):
            found.append(read(target))
        assert {path.name for path in tmp_path.iterdir()} == {"folder", ".folder.lock"}
        if done.returncode == 0:
            break
    assert done.returncode == 0
    assert len(found) >= 3
    assert found[0] == {"old"}
    assert found[-1] == {"new"}
    assert all(each in ({"old"}, {"new"}) for each in found)


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_is_replaced_as_a_whole(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(storage, "_exchanged", lambda fresh, target: False)
    target = tmp_path / "folder"
    write(target, "old")
    (target / "more").touch()
    replace(target)
    assert read(target) == {"new"}
    assert not (target / "more").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize(
    ("number", "said"), [(errno.ENOSPC, "No space left on device"), (errno.EROFS, "Read-only file system")]
)
def test_what_cannot_be_written_is_told_and_stays(tmp_path, number, said):
    target = tmp_path / "folder"
    write(target, "old")
    with pytest.raises(StorageError, match=f"^Cannot write {target}: {said}; free disk space or give"):
        replace(target, OSError(number, said))
    assert read(target) == {"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_file_in_the_way_of_a_folder_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"^Cannot write .*file/folder: "):
        replace(tmp_path / "file" / "folder")


def test_another_fault_is_left_as_it_is(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "file"):
        (tmp_path / "nothing").read_text()


def test_a_second_writer_waits_for_the_first(tmp_path, caplog):
    order, begun = [], Event()

    def second():
        begun.set()
        with writing(tmp_path / "folder"):
            order.append("second")

    thread = Thread(target=second)
    with caplog.at_level(logging.INFO, logger="watchrank"), writing(tmp_path / "folder"):
        thread.start()
        begun.wait()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert caplog.messages == [f"Waiting for another process, which is at work on {tmp_path / 'folder'}."]


def test_readers_wait_for_the_writer_and_the_writer_for_readers(tmp_path):
    place = tmp_path / "folder"

    def start(hold):
        held = Event()

        def work():
            with hold(place):
                held.set()

        thread = Thread(target=work)
        thread.start()
        return thread, held

    for first, second, waits in (
        (reading, writing, True),
        (writing, reading, True),
        (reading, reading, False),
    ):
        with first(place):
            thread, held = start(second)
            assert held.wait(0.2 if waits else 60) != waits
        thread.join()
        assert held.is_set()


def test_what_nobody_can_write_is_read_without_a_lock(tmp_path):
    with reading(tmp_path / "nowhere" / "folder"):
        pass
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_that_is_replaced_while_it_is_read_is_read_again(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(storage, "_exchanged", lambda fresh, target: False)
    target, found = tmp_path / "folder", []
    write(target, "old")

    def parts(folder):
        found.append((folder / "a").read_text())
        if len(found) == 1:
            replace(target)
        return found[-1], (folder / "b").read_text()

    assert read_whole(target, parts) == ("new", "new")
    assert found == ["old", "new"]


def test_a_fault_of_a_folder_that_is_being_replaced_counts_no_more_than_what_it_reads(tmp_path):
    target, found = tmp_path / "folder", []
    write(target, "old")

    def read_old(folder):
        found.append((folder / "a").read_text())
        if len(found) == 1:
            replace(target)
            raise RuntimeError("a part is missing")
        return found[-1]

    assert read_whole(target, read_old) == "new"


def test_a_fault_of_a_folder_that_stays_is_told(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_whole(tmp_path / "nowhere", lambda folder: (folder / "a").read_text())
    write(tmp_path / "folder", "old")
    with pytest.raises(FileNotFoundError):
        read_whole(tmp_path / "folder", lambda folder: (folder / "c").read_text())
