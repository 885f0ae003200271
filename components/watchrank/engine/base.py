"""What ingestion and features ask of an engine."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import ibis
import ibis.expr.types as ir
import pyarrow as pa


class Engine(Protocol):
    """An Ibis backend in UTC, and what Ibis does not say the same way of every backend.

    Attributes:
        backend: computes the expressions on tables that the engine has read.
    """

    @property
    def backend(self) -> ibis.BaseBackend:
        """The backend."""
        ...

    def read_csv(self, files: Iterable[Path], width: int, places: Mapping[str, int]) -> ir.Table:
        """Return columns of comma-separated UTF-8 files with a header, plain or .gz, all as text.

        `width` is the number of columns that every line has; `places` names the ones to read and their place.
        """
        ...

    def read_parquet(self, files: Iterable[Path], partitioned: bool = False) -> ir.Table:
        """Return the rows of Parquet files; where `partitioned`, the `key=value` folder becomes a column."""
        ...

    def batches(self, table: ir.Table, rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a table in its order, at most so many at once."""
        ...

    def staged(self, table: ir.Table, path: Path) -> ir.Table:
        """Compute a table once, on disk at `path`, and return it read from there."""
        ...

    def write_parquet(
        self, table: ir.Table, path: Path, order: Sequence[str], group_rows: int = 122_880
    ) -> None:
        """Write a table to one Parquet file, sorted by the columns `order`, out of core.

        Every column may hold NULL. `group_rows` are the rows that a reader must hold at once, about.
        """
        ...

    def write_partitions(self, table: ir.Table, folder: Path, column: str) -> None:
        """Write a table to `folder/<column>=<value>/`, in no order; of no rows there comes no file."""
        ...

    def running(self, what: str) -> AbstractContextManager[None]:
        """Turn the engine's complaints in the block into one sentence about `what`.

        Raises:
            InputError: a file cannot be read.
            WatchrankError: memory or disk ran out.
        """
        ...

    def disconnect(self) -> None:
        """Close the engine and remove what it left on disk."""
        ...
