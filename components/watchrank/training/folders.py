"""A trained model as a folder: `config.json`, `weights.safetensors` and `learning_curve.json`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from watchrank.errors import InputError, StorageError
from watchrank.storage import atomic_path, read_whole, write_json
from watchrank.training.fit import Epoch

CONFIG, WEIGHTS = "config.json", "weights.safetensors"


def write_model(output: Path, weights: dict[str, Tensor], config: dict[str, Any], curve: list[Epoch]) -> None:
    """Write a model folder atomically.

    Raises:
        StorageError: it cannot be written.
    """
    with atomic_path(output) as fresh:
        fresh.mkdir()
        try:
            save_file({name: value.contiguous().cpu() for name, value in weights.items()}, fresh / WEIGHTS)
        except SafetensorError as error:
            raise StorageError(f"Cannot write the model {output}: {error}; free disk space.") from None
        write_json(fresh / CONFIG, config)
        write_json(fresh / "learning_curve.json", [asdict(line) for line in curve])


def read_model(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the configuration and the weights of a model folder.

    Raises:
        InputError: the folder is not a model or a file in it is damaged.
    """
    try:
        return read_whole(folder, _read)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"Cannot read the model {folder}: {error}. Train it again.") from None


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return json.loads((folder / CONFIG).read_text()), load_file(folder / WEIGHTS)


def read_curve(folder: Path) -> list[Epoch]:
    """Return the learning curve of a model folder.

    Raises:
        InputError: the folder is not a model.
    """
    try:
        return [Epoch(**line) for line in json.loads((folder / "learning_curve.json").read_text())]
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"Cannot read the model {folder}: {error}. Train it again.") from None
