"""Tables as folders of `.npy` columns, written in pieces and read through memory maps."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np

from watchrank.errors import InputError
from watchrank.storage import read_whole

Columns = dict[str, np.ndarray]


class ColumnWriter:
    """Appends rows to the columns of one folder, in memory that does not grow with them.

    A column is a plain `.npy` file. NumPy leaves room in the header for the number of rows to grow, so the
    header is written again, in place, when the number is known.
    """

    def __init__(self, folder: Path, empty: Mapping[str, np.ndarray]) -> None:
        """Open a file for each column; `empty` tells their dtypes and shapes by arrays of no rows."""
        folder.mkdir(parents=True)
        self.rows = 0
        self._checksums = dict.fromkeys(empty, 0)
        self._empty = dict(empty)
        self._files: dict[str, BinaryIO] = {name: (folder / f"{name}.npy").open("wb") for name in empty}
        for name in empty:
            self._write_header(name)

    def append(self, columns: Mapping[str, np.ndarray]) -> None:
        """Add rows: the same number to every column."""
        assert columns.keys() == self._empty.keys()
        (rows,) = {len(values) for values in columns.values()}
        for name, empty in self._empty.items():
            values = np.ascontiguousarray(columns[name], dtype=empty.dtype)
            assert values.shape[1:] == empty.shape[1:], name
            self._checksums[name] = zlib.crc32(values.data, self._checksums[name])
            self._files[name].write(values.data)
        self.rows += rows

    @property
    def checksum(self) -> int:
        """CRC-32 over all columns, however many pieces they came in."""
        return zlib.crc32(repr(self._checksums).encode())

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write the final headers and close the files."""
        for name, file in self._files.items():
            with file:
                self._write_header(name)

    def _write_header(self, name: str) -> None:
        empty, file = self._empty[name], self._files[name]
        shape = (self.rows, *empty.shape[1:])
        file.seek(0)
        header = {"descr": np.lib.format.dtype_to_descr(empty.dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)


def read_dataset(path: Path, command: str) -> tuple[dict[str, Any], dict[str, Columns]]:
    """Return `manifest.json` of a dataset and its tables by their folders, such as "train", all of one state.

    A dataset that takes the place of this one changes nothing of them.

    Args:
        path: the folder.
        command: builds such a dataset.

    Raises:
        InputError: there is no dataset, or a column is damaged.
    """
    try:
        return read_whole(path, _read)
    except InputError:
        raise
    except (OSError, ValueError):
        raise InputError(f"There is no dataset in {path}; run `watchrank {command}` first.") from None


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Columns]]:
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    folders = sorted({file.parent for file in path.rglob("*.npy")})
    return manifest, {folder.relative_to(path).as_posix(): read_columns(folder) for folder in folders}


def read_columns(folder: Path) -> Columns:
    """Map every column of a folder into memory, as plain arrays: a slice of a `numpy.memmap` costs more.

    Raises:
        InputError: a column is damaged.
    """
    return {path.stem: _mapped(path) for path in sorted(folder.glob("*.npy"))}


def _mapped(path: Path) -> np.ndarray:
    try:
        return np.asarray(np.load(path, mmap_mode="r"))
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot read the column {path}: {error}; build the dataset again.") from None
