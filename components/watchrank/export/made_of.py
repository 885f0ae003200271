"""What a release is made of, so that the same is not made twice and the next run can start from it."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

import watchrank
from watchrank.config import Settings
from watchrank.errors import InputError
from watchrank.releases import checksum, read_manifest, release_numbers
from watchrank.training.folders import CONFIG, WEIGHTS

TRAINING = "training"
"""The release's folder of the trained models, by name: what a later run starts from."""


def parts(
    models: Mapping[str, Path],
    datasets: Mapping[str, Path],
    settings: Sequence[Settings],
    features: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """Return what decides how a release turns out, as its manifest names it.

    Args:
        models: folders of the trained models, by name.
        datasets: folders of their datasets, by name.
        settings: of the export.
        features: of the videos, with their ids.
    """
    return {
        "code": code_checksum(),
        "models": {
            name: {file: checksum(folder / file) for file in (CONFIG, WEIGHTS)}
            for name, folder in models.items()
        },
        "datasets": {name: checksum(folder / "manifest.json") for name, folder in datasets.items()},
        "settings": [part.model_dump(mode="json") for part in settings],
        "video_features": features_checksum(features),
    }


def features_checksum(features: Mapping[str, np.ndarray]) -> str:
    """Return a SHA-256 of the videos' features and ids, each [N]."""
    found = hashlib.sha256()
    for name in sorted(features):
        found.update(name.encode() + np.ascontiguousarray(features[name]).tobytes())
    return found.hexdigest()


def code_checksum() -> str:
    """Return a SHA-256 of the library's source as this process found it.

    A version in the making changes without its number.
    """
    return _CODE


def keep(models: Mapping[str, Path], release: Path) -> None:
    """Copy the trained models into a release."""
    for name, folder in models.items():
        shutil.copytree(folder, release / TRAINING / name)


def trained_model(release: str, name: str) -> Path | None:
    """Return the folder of a trained model that a release keeps; None without the release or the model."""
    folder = Path(release) / TRAINING / name
    return folder if release and folder.exists() else None


def started_from(models: Mapping[str, Path], releases: Path) -> int | None:
    """Return the first release whose weights one of the models started from, or None."""
    configs = {name: json.loads((folder / CONFIG).read_text()) for name, folder in models.items()}
    started = {(_kept(name), config.get("started_from")) for name, config in configs.items()}
    for number in release_numbers(releases):
        with suppress(InputError):  # a damaged one is none
            if started & read_manifest(releases / f"{number:06d}")["files"].items():
                return number
    return None


def _kept(name: str) -> str:
    return f"{TRAINING}/{name}/{WEIGHTS}"


def _source_checksum() -> str:
    root = Path(watchrank.__file__).parent
    files = {path.relative_to(root).as_posix(): checksum(path) for path in root.rglob("*.py")}
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


_CODE = _source_checksum()
"""Taken when the process starts: what it runs is not what is written over its files meanwhile."""
