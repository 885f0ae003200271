"""Releases: immutable, numbered folders with a manifest that names every file's checksum."""

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from watchrank.errors import DeploymentError, InputError
from watchrank.storage import atomic_path, clear_killed

MANIFEST = "manifest.json"

LAST = 999_999
"""The greatest number of a release."""

_NAME = re.compile(r"[a-z][a-z0-9_]*")


def release_numbers(releases: Path) -> list[int]:
    """Return the numbers of the releases in a folder, in order."""
    return sorted(int(path.name) for path in releases.glob("[0-9]" * 6) if (path / MANIFEST).exists())


@contextmanager
def next_release(releases: Path, taken: Collection[int] = ()) -> Iterator[tuple[int, Path]]:
    """Yield the next number and a folder to fill; it becomes that release when the block ends well.

    Only one process at a time makes a release: the caller holds the lock of the folder (`storage.locked`).

    Args:
        releases: folder of all releases.
        taken: numbers of releases elsewhere, such as in a release store; the next one is above them all.
    """
    number = max([*release_numbers(releases), *taken], default=0) + 1
    clear_killed(releases / f"{number:06d}")
    with atomic_path(releases / f"{number:06d}") as fresh:
        fresh.mkdir()
        yield number, fresh


def find_release(releases: Path, parts: Mapping[str, Any]) -> Path | None:
    """Return the newest release that is whole and was made of exactly these parts, or None."""
    for number in reversed(release_numbers(releases)):
        release = releases / f"{number:06d}"
        with suppress(InputError, DeploymentError):
            if read_manifest(release).get("made_of") == parts:
                verify(release)
                return release
    return None


def read_manifest(release: Path) -> dict[str, Any]:
    """Return the manifest of a release.

    Raises:
        InputError: the folder is no release.
    """
    try:
        manifest: dict[str, Any] = json.loads((release / MANIFEST).read_text(encoding="utf-8"))
        check_manifest(manifest)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{release} is no release, its {MANIFEST} cannot be read ({error}); run `watchrank export`."
        ) from None
    return manifest


def check_manifest(manifest: Any) -> None:
    """Check what of a manifest becomes a path: its numbers and the names of endpoints and files.

    Raises:
        ValueError: one of them is wrong or missing, or leads out of the release.
    """
    if not isinstance(manifest, dict):
        raise ValueError("it holds no JSON object")
    files, endpoints = manifest.get("files"), manifest.get("endpoints")
    if not isinstance(files, dict) or not isinstance(endpoints, list):
        raise ValueError("it lists no files or no endpoints")
    for number in (manifest.get("release"), manifest.get("warm_started_from") or 1):
        if type(number) is not int or not 1 <= number <= LAST:
            raise ValueError(f"it names {number!r}, no number of a release")
    for name in endpoints:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"it names {name!r}, no endpoint")
    for name in files:
        if not _is_inside(name):
            raise ValueError(f"it names {name!r}, no file of a release")


def _is_inside(name: str) -> bool:
    """Return whether a file that a manifest names lies below its release."""
    path = PurePosixPath(name)
    return bool(path.parts) and path.as_posix() == name and not {"/", ".."} & {*path.parts}


def verify(release: Path) -> dict[str, Any]:
    """Compare every file of a release with its checksum; return the manifest.

    Raises:
        InputError: the folder is no release.
        DeploymentError: a file is missing, is another one, or is not in the manifest.
    """
    manifest = read_manifest(release)
    found = {name: value for name, value in checksums(release).items() if name != MANIFEST}
    wrong = sorted(name for name, _ in found.items() ^ manifest["files"].items())
    if wrong:
        raise DeploymentError(
            f"The release {release} is damaged: {wrong[0]} is missing or not the file of its manifest; "
            "export it again."
        )
    return manifest


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder, by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): checksum(path) for path in files}
