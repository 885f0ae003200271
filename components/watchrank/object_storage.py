"""One way to a folder of this machine and to a prefix in S3-compatible object storage.

Key, region and address of S3 come from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and
AWS_ENDPOINT_URL, or from whatever else the AWS SDK knows, such as the role of a pod.
"""

import re
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, Any

from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem

from watchrank.errors import InputError, WatchrankError
from watchrank.storage import atomic_path

CHUNK = 8 << 20
"""Bytes to read at once: S3 is asked anew for every read."""

_PREFIX = re.compile(r"s3://[^/?#]+(/[^?#]*)?")
_HINT = " To create buckets, enable"
"""What pyarrow adds from here on is of no use: buckets are not made here."""

_KEY = re.compile(r"\w+://[^/]*[:@]")


def is_remote(location: str) -> bool:
    """Return whether a location is a URL, and not the path of a folder."""
    return "://" in location


def absolute(location: str) -> str:
    """Return a location that means the same in every working folder."""
    return location if is_remote(location) else str(Path(location).absolute())


def connect(location: str, what: str) -> tuple[FileSystem, str]:
    """Return the file system of a location and the location's path on it; nothing is asked of a server yet.

    Args:
        location: path of a folder, or s3://bucket/prefix.
        what: what lies there, in the words of a message: "release store".

    Raises:
        InputError: the location is of another kind, names no bucket or holds a key.
    """
    if not is_remote(location):
        return LocalFileSystem(), absolute(location)
    if _KEY.match(location):
        raise InputError(
            f"The address of the {what} holds a key; give s3://bucket/prefix alone, and the key in "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        )
    wrong = f"{location} is no {what}; give the path of a folder or s3://bucket/prefix."
    if not _PREFIX.fullmatch(location):
        raise InputError(wrong)
    try:
        files, path = FileSystem.from_uri(f"{location}?allow_delayed_open=true")  # one request an object
    except ValueError:
        raise InputError(wrong) from None
    return files, path


@contextmanager
def usable(what: str, failure: type[WatchrankError]) -> Iterator[None]:
    """Say in one sentence why a store fails; that something is not there is for the caller to judge.

    Args:
        what: what lies there, with its location: "release store s3://bucket".
        failure: the error to raise.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = str(error).splitlines()[0].partition(_HINT)[0].rstrip(".")
        raise failure(
            f"The {what} cannot be used ({reason}); check the address, the rights and, for S3, the AWS "
            "variables."
        ) from error


class ObjectStore:
    """The objects below a folder or a prefix, by their names in it; the same code serves both.

    Every method raises the store's error, in the one sentence of `usable`, when the store cannot be used.
    """

    def __init__(self, location: str, what: str, failure: type[WatchrankError]) -> None:
        """Open a store; a folder that is not there is made by the first write, a bucket is not.

        Args:
            location: path of a folder, or s3://bucket/prefix.
            what: what lies there, in the words of a message: "release store".
            failure: the error to raise when it cannot be used.

        Raises:
            InputError: the location is of another kind, names no bucket or holds a key.
        """
        self._what, self._failure = f"{what} {location}", failure
        self._local = not is_remote(location)
        with self._usable():
            self._files, self._root = connect(location, what)

    def folders(self, folder: str = "") -> list[str]:
        """Return the names of the folders in a folder, in order; none when it is not there."""
        with self._usable():
            found = self._files.get_file_info(FileSelector(self._at(folder), allow_not_found=True))
        return sorted(info.base_name for info in found if info.type == FileType.Directory)

    def holding(self, name: str, folder: str = "") -> list[str]:
        """Return those of the folders in a folder that hold an object of a name."""
        folders = self.folders(folder)
        with self._usable():
            found = self._files.get_file_info([self._at(f"{folder}/{each}/{name}") for each in folders])
        return [each for each, info in zip(folders, found, strict=True) if info.is_file]

    def read(self, name: str) -> bytes | None:
        """Return an object, or None when it is not there."""
        try:
            with self.open(name) as source:
                content: bytes = source.read()
                return content
        except FileNotFoundError:
            return None

    @contextmanager
    def open(self, name: str) -> Iterator[Any]:
        """Yield an object as a stream.

        Raises:
            FileNotFoundError: it is not there.
        """
        with self._usable(), self._files.open_input_stream(self._at(name), compression=None) as source:
            yield source

    def write(self, name: str, source: IO[bytes]) -> None:
        """Write an object of any size; in a folder a part of it can be seen meanwhile."""
        with self._usable():
            self._write(self._at(name), source)

    def replace(self, name: str, content: bytes) -> None:
        """Write a small object; who reads meanwhile gets the former one or this one."""
        path = self._at(name)
        with self._usable(), atomic_path(Path(path)) if self._local else nullcontext(path) as fresh:
            self._write(str(fresh), BytesIO(content))

    def make_folder(self, name: str) -> None:
        """Make a folder; in S3, which has none, an object stands for it."""
        with self._usable():
            self._files.create_dir(self._at(name))

    def remove(self, name: str) -> None:
        """Remove an object; one that is not there is no error."""
        with self._usable(), suppress(FileNotFoundError):
            self._files.delete_file(self._at(name))

    def remove_folder(self, name: str) -> None:
        """Remove all objects of a folder, in any order; one that is not there is no error."""
        with self._usable(), suppress(FileNotFoundError):
            self._files.delete_dir(self._at(name))

    def _write(self, path: str, source: IO[bytes]) -> None:
        # pyarrow.fs.copy_files would not do: it does not report what fails when the target is closed
        try:
            target = self._files.open_output_stream(path, compression=None)
        except FileNotFoundError:
            self._files.create_dir(str(PurePosixPath(path).parent))
            target = self._files.open_output_stream(path, compression=None)
        with target:
            shutil.copyfileobj(source, target, CHUNK)

    def _at(self, name: str) -> str:
        return str(PurePosixPath(self._root, name.lstrip("/")))

    def _usable(self) -> AbstractContextManager[None]:
        return usable(self._what, self._failure)
