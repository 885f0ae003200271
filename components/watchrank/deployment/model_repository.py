"""A Triton model repository on disk: `<model>/config.pbtxt` and `<model>/<version>/model.onnx`.

Versions count up from 1. Each appears by one rename, so a server never sees half of one.
"""

import shutil
import tempfile
from pathlib import Path

from watchrank.storage import atomic_path

CONFIG = "config.pbtxt"
GRAPH = "model.onnx"


def versions(repository: Path, model: str) -> list[int]:
    """Return the versions of `model` that are there, oldest first."""
    folder = repository / model
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.is_dir() and path.name.isdecimal())


def read_config(repository: Path, model: str) -> str | None:
    """Return the model's `config.pbtxt`, or None when there is none."""
    path = repository / model / CONFIG
    return path.read_text(encoding="utf-8") if path.exists() else None


def publish(model_onnx: Path, config_pbtxt: str, repository: Path, model: str) -> int:
    """Write the next version of `model` and its configuration; return its number.

    No server takes it up before it is told to load the model (explicit model control).

    Raises:
        OSError: the file cannot be read or the repository cannot be written.
    """
    version = max(versions(repository, model), default=0) + 1
    with atomic_path(repository / model / str(version)) as folder:
        folder.mkdir()
        shutil.copyfile(model_onnx, folder / GRAPH)
        _write_config(repository, model, config_pbtxt)
    return version


def withdraw(repository: Path, model: str, version: int, config_pbtxt: str | None) -> None:
    """Undo `publish`: remove the version and put the configuration of before back (None: there was none)."""
    folder = repository / model
    _remove(folder / str(version))
    if config_pbtxt is not None:
        _write_config(repository, model, config_pbtxt)
        return
    (folder / CONFIG).unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


def prune(repository: Path, model: str, keep: int) -> list[int]:
    """Remove all but the newest `keep` versions; return those removed."""
    removed = versions(repository, model)[:-keep]
    for version in removed:
        _remove(repository / model / str(version))
    return removed


def _write_config(repository: Path, model: str, text: str) -> None:
    with atomic_path(repository / model / CONFIG) as fresh:
        fresh.write_text(text, encoding="utf-8")


def _remove(folder: Path) -> None:
    """Remove a folder so that it goes at once: rename first, delete then."""
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as holder:
        folder.rename(Path(holder) / folder.name)
