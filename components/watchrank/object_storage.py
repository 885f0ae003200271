"""One way to a folder of this machine and to a prefix in S3-compatible object storage.

Key, region and address of S3 come from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and
AWS_ENDPOINT_URL, or from whatever else the AWS SDK knows, such as the role of a pod.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyarrow.fs import FileSystem, LocalFileSystem

from watchrank.errors import InputError, WatchrankError

CHUNK = 8 << 20
"""Bytes to read at once: S3 is asked anew for every read."""

_PREFIX = re.compile(r"s3://[^/?#]+(/[^?#]*)?")
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
        reason = str(error).splitlines()[0].rstrip(".")
        raise failure(
            f"The {what} cannot be used ({reason}); check the address, the rights and, for S3, the AWS "
            "variables."
        ) from error
