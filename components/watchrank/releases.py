"""Releases: immutable, numbered folders with a manifest that names every file's checksum."""

import hashlib
from pathlib import Path

MANIFEST = "manifest.json"


def release_numbers(releases: Path) -> list[int]:
    """Return the numbers of the releases in a folder, in order."""
    return sorted(int(path.name) for path in releases.glob("[0-9]" * 6) if (path / MANIFEST).exists())


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder, by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): checksum(path) for path in files}
