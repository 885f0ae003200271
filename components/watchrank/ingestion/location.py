"""Where a log lies: a folder of this machine, or a prefix in object storage, which is fetched into one.

The engine reads local files alone; so it takes a log from anywhere in the same way.
"""

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from pyarrow.fs import FileInfo, FileSelector, FileSystem

from watchrank.errors import InputError, WatchrankError
from watchrank.ingestion.job import SOURCES
from watchrank.object_storage import CHUNK, connect, is_remote, usable

_TRANSFERS = 8
"""Files that are fetched at the same time."""


@contextmanager
def local_log(location: str, source: str) -> Iterator[Path]:
    """Yield the folder of a log; one from object storage lies in the system's temporary folder meanwhile.

    Only what the source reads is fetched. An error of the block names the files as they are in the storage.

    Args:
        location: path of a folder, or s3://bucket/prefix (see `watchrank.object_storage`).
        source: the format of the log, a key of `SOURCES`.

    Raises:
        InputError: there is no such bucket or prefix, it may not be read or not be reached, the disk is too
            small, or a file changes while it is fetched.
    """
    if not is_remote(location):
        yield Path(location)
        return
    with tempfile.TemporaryDirectory(prefix="watchrank-log-") as name:
        folder = Path(name)
        _fetch_log(location, source, folder)
        try:
            yield folder
        except WatchrankError as error:
            raise type(error)(str(error).replace(str(folder), location.rstrip("/"))) from error


def _fetch_log(location: str, source: str, folder: Path) -> None:
    files, root = connect(location, "log")
    patterns = {pattern for feed in SOURCES.get(source, {}).values() for pattern in feed.patterns}
    try:
        with usable(f"log {location}", InputError):
            found = _find(files, root, patterns)
            _check_room(location, found.values(), folder)
            with ThreadPoolExecutor(_TRANSFERS) as pool:
                list(pool.map(lambda name: _fetch(files, found[name], folder / name), found))
    except FileNotFoundError:
        raise InputError(f"There is no folder {location}; give the one that holds the log's files.") from None


def _find(files: FileSystem, root: str, patterns: set[str]) -> dict[str, FileInfo]:
    """Return the files that match a pattern, by their path below the root; only a last part is a glob."""
    names: dict[PurePosixPath, list[str]] = {}
    for path in map(PurePosixPath, patterns):
        names.setdefault(path.parent, []).append(path.name)
    found = {}
    for parent, wanted in names.items():
        selector = FileSelector(f"{root}/{parent}".removesuffix("/."), allow_not_found=parent.name != "")
        for info in files.get_file_info(selector):
            if info.is_file and any(fnmatchcase(info.base_name, name) for name in wanted):
                found[str(parent / info.base_name)] = info
    return found


def _check_room(location: str, found: Iterable[FileInfo], folder: Path) -> None:
    need, free = sum(info.size for info in found), shutil.disk_usage(folder).free
    if need > free:
        raise InputError(
            f"The log {location} has {need / 1e9:,.1f} GB, and {folder.parent} has room for "
            f"{free / 1e9:,.1f}; let TMPDIR name a folder on a larger disk."
        )


def _fetch(files: FileSystem, source: FileInfo, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with files.open_input_stream(source.path, compression=None) as stream, target.open("wb") as file:
            shutil.copyfileobj(stream, file, CHUNK)
        whole = target.stat().st_size == source.size
    except FileNotFoundError:
        whole = False
    if not whole:
        raise InputError(
            f"The file s3://{source.path} changed while it was fetched; start again once the log is written."
        )
