"""Writes that are either whole or not there: a temporary path beside the target, then one rename."""

import ctypes
import errno
import fcntl
import glob
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

from watchrank.errors import StorageError

logger = logging.getLogger(__name__)

T = TypeVar("T")

_REPLACED = "replaced"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
"""Of Linux' renameat2."""

_UNWRITABLE = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EEXIST,
    errno.EFBIG,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; rename it to `target` when the block ends well.

    The block may create a file or a folder there, and others beside it that go with the block. On an error
    the temporary path is removed and `target` stays as it was. A folder that exists is replaced as a whole,
    in one step where the file system can.

    Raises:
        StorageError: the disk is full, or the place cannot be written.
    """
    with _explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        holder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            fresh = holder / target.name
            yield fresh
            if not (target.is_dir() and _exchanged(fresh, target)):
                if target.is_dir():
                    target.rename(holder / _REPLACED)
                fresh.replace(target)
        finally:
            shutil.rmtree(holder, ignore_errors=True)


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Hold the output of a stage while the block writes it; wait while another process writes or reads it.

    What killed processes left beside or in it is removed first. The lock, a file beside `target`, goes with
    the process, also when it is killed.

    Raises:
        StorageError: the place cannot be written.
    """
    with _explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with _lock_of(target).open("w") as file:
            _lock(file, target)
            clear_killed(target)
            yield


@contextmanager
def reading(*outputs: Path) -> Iterator[None]:
    """Hold outputs of stages while the block reads them, so that each of their files is of the same state.

    Others may read them, too; who writes one of them waits, and so does this while one is written. Where no
    lock can be made, nobody can write either.
    """
    with ExitStack() as stack:
        for output in outputs:
            try:
                lock = os.open(_lock_of(output), os.O_RDONLY | os.O_CREAT, 0o644)
            except OSError:
                continue
            _lock(stack.enter_context(os.fdopen(lock)), output, fcntl.LOCK_SH)
        yield


def read_whole(folder: Path, read: Callable[[Path], T]) -> T:
    """Return what `read` makes of a folder, all of one state; it is called again if the folder was replaced.

    For what opens, quickly, all files that it needs: it waits for nobody, and reads on in the old ones.
    """
    while True:
        try:
            state = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)  # while it is open no other has its number
        except OSError:
            return read(folder)  # which says what is wrong
        try:
            found = read(folder)
            if _is_at(state, folder):
                return found
        except Exception:
            if _is_at(state, folder):
                raise
        finally:
            os.close(state)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which is made when it is not there; wait while another process holds it.

    The lock goes with the process, also when it is killed.
    """
    with _explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as file:
            _lock(file, folder)
            yield


def clear_killed(target: Path) -> None:
    """Remove what killed writes of `target`, or in it, left; nobody else may write it meanwhile."""
    for holder in target.parent.glob(f".{glob.escape(target.name)}.*/"):
        if (holder / _REPLACED).exists() and not target.exists():
            (holder / _REPLACED).rename(target)
        shutil.rmtree(holder)
    for holder in [path for path in target.rglob(".*.*") if path.is_dir()]:
        shutil.rmtree(holder)


def write_json(target: Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, atomically."""
    with atomic_path(target) as fresh:
        fresh.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def _exchanged(fresh: Path, target: Path) -> bool:
    """Let two paths change places in one step; return False where the system or its file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except AttributeError:
        return False
    paths = (_AT_FDCWD, os.fsencode(fresh), _AT_FDCWD, os.fsencode(target))
    return bool(renameat2(*paths, _RENAME_EXCHANGE) == 0)


def _lock_of(target: Path) -> Path:
    return target.parent / f".{target.name}.lock"


def _lock(file: IO[str], what: Path, kind: int = fcntl.LOCK_EX) -> None:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        logger.info("Waiting for another process, which is at work on %s.", what)
        fcntl.flock(file, kind)


def _is_at(state: int, folder: Path) -> bool:
    """Return whether an open folder still is the one at a path."""
    return folder.exists() and os.path.samestat(os.fstat(state), folder.stat())


@contextmanager
def _explained(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        where = f" ({error.filename})" if error.filename else ""
        raise StorageError(
            f"Cannot write {target}: {error.strerror}{where}; free disk space or give a folder that can be "
            "written."
        ) from error
