"""Releases: immutable, numbered folders with a manifest that names every file's checksum."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from watchrank.errors import DeploymentError, InputError
from watchrank.storage import atomic_path, clear_killed

MANIFEST = "manifest.json"


def release_numbers(releases: Path) -> list[int]:
    """Return the numbers of the releases in a folder, in order."""
    return sorted(int(path.name) for path in releases.glob("[0-9]" * 6) if (path / MANIFEST).exists())


@contextmanager
def next_release(releases: Path) -> Iterator[tuple[int, Path]]:
    """Yield the next number and a folder to fill; it becomes that release when the block ends well.

    Only one process at a time makes a release: the caller holds the lock of the folder (`storage.locked`).
    """
    number = max(release_numbers(releases), default=0) + 1
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
        manifest["files"], manifest["release"], manifest["endpoints"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{release} is no release, its {MANIFEST} cannot be read ({error}); run `watchrank export`."
        ) from None
    return manifest


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
