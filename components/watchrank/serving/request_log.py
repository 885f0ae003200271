"""A log of what was served: Parquet files with the very features that the ranker was given.

```
<folder>/<UTC time>-<random>.parquet     rows of `request_table.SCHEMA`, one a request
```
"""

import logging
import threading
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from watchrank.errors import InputError
from watchrank.schema import text_id
from watchrank.serving.request_table import SCHEMA, check_request, request_rows
from watchrank.storage import atomic_path

if TYPE_CHECKING:
    from watchrank.serving.question import Recommendation

logger = logging.getLogger(__name__)


def in_share(user_id: int, share: float, purpose: str) -> bool:
    """Tell whether a user is in a share of all users: for good, by the first 60 bits of an MD5.

    Who is in at one share is also in at every larger one. Different purposes choose independently.
    """
    return text_id(f"{purpose} {user_id}") < share * 2**60


class RequestLog:
    """Keeps the requests of a share of the users; threads may share it, each process makes its own.

    Rows wait in memory (3 KB each) until there are `rows_a_file`, or until `flush`, and then become a file;
    the append that fills the buffer writes it. A buffer that cannot be written, for a full disk say, is
    dropped and serving goes on: its rows count as `dropped`, and the first failure after a success logs a
    warning.
    """

    def __init__(self, folder: Path, share: float, rows_a_file: int = 10_000) -> None:
        """Make the log; the folder appears with the first file.

        Args:
            folder: where the files go; logs of several processes may share it.
            share: share of the users that are logged, from 0 to 1.
            rows_a_file: requests a file.

        Raises:
            InputError: `share` or `rows_a_file` is out of bounds.
        """
        if not 0 <= share <= 1 or rows_a_file < 1:
            raise InputError(
                f"The request log has share {share} and rows_a_file {rows_a_file}; "
                "give a share from 0 to 1 and at least 1 row a file."
            )
        self.folder, self.share, self.rows_a_file = folder, share, rows_a_file
        self.dropped = 0
        """Rows that were lost: not written, or appended after `close`."""
        self._lock = threading.Lock()
        self._waiting: list[pa.Table] = []
        self._rows = 0
        self._closed = self._failing = False

    def keeps(self, user_id: int) -> bool:
        """Tell whether a user is in the log; see `in_share`."""
        return in_share(user_id, self.share, "request log")

    def append(
        self,
        request: Mapping[str, np.ndarray],
        answers: Sequence["Recommendation"],
        timestamp: datetime | None = None,
    ) -> None:
        """Log n requests and their answers. In an event loop, call it by `asyncio.to_thread`.

        Args:
            request: the features of `schema.REQUEST_TENSORS` and `schema.USER_TENSORS`, each [n, *dims];
                what else there is, is not logged.
            answers: the n answers, in the order of the request.
            timestamp: time of the request, with a time zone; the present when not given.

        Raises:
            InputError: a feature is missing or does not have n rows. Never for a write that fails.
        """
        check_request(request, len(answers))
        kept = [row for row, answer in enumerate(answers) if self.keeps(answer.user_id)]
        if kept:
            features = {name: values[kept] for name, values in request.items() if name in SCHEMA.names}
            self._add(request_rows(features, [answers[row] for row in kept], timestamp or datetime.now(UTC)))

    def flush(self) -> None:
        """Write what waits. Call it now and then where requests are rare."""
        with self._lock:
            waiting = self._take()
        self._write(waiting)

    def close(self) -> None:
        """Write what waits; later rows are dropped."""
        with self._lock:
            self._closed = True
        self.flush()

    def __enter__(self) -> Self:
        """Return the log."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the log."""
        self.close()

    def _add(self, rows: pa.Table) -> None:
        full: list[pa.Table] = []
        with self._lock:
            if self._closed:
                self.dropped += len(rows)
                return
            self._waiting.append(rows)
            self._rows += len(rows)
            if self._rows >= self.rows_a_file:
                full = self._take()
        self._write(full)

    def _take(self) -> list[pa.Table]:
        waiting, self._waiting, self._rows = self._waiting, [], 0
        return waiting

    def _write(self, tables: list[pa.Table]) -> None:
        if not tables:
            return
        rows = pa.concat_tables(tables).combine_chunks()
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex}.parquet"
        try:
            with atomic_path(self.folder / name) as fresh:
                pq.write_table(rows, fresh, compression="zstd")
            self._failing = False
        except OSError as error:
            with self._lock:
                self.dropped += len(rows)
                first, self._failing = not self._failing, True
            if first:
                logger.warning("Cannot write the request log in %s, rows are dropped: %s", self.folder, error)


def read_log(folder: Path) -> pads.Dataset:
    """Return the logged requests as a dataset with the columns of `SCHEMA`, in the order of the files' times.

    Raises:
        InputError: there is no file.
    """
    files = sorted(str(path) for path in folder.glob("*.parquet"))
    if not files:
        raise InputError(f"There is no request log in {folder}; serve with a request log first.")
    return pads.dataset(files, schema=SCHEMA, format="parquet")
