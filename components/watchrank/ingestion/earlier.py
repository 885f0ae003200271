"""What an earlier run left in the events folder, and what of it stays.

The log is append-only: a day that the input no longer has stays, and so do users and videos that it no
longer has, which such days may refer to, and the earlier watches of such users. The manifest is written
last, so after a kill it vouches for less than there is; what it does not vouch for is written or measured
again.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet as pq

from watchrank.engine import Engine
from watchrank.errors import InputError
from watchrank.events import Day, Manifest, TableSummary, file_of, manifest, manifest_path, partition_of
from watchrank.ingestion.measure import measure_all
from watchrank.ingestion.staging import ALL, Staged
from watchrank.schema import Table
from watchrank.storage import write_json


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """The events folder before this run. `manifest` is None where there is none to read."""

    engine: Engine
    events: Path
    source: str
    manifest: Manifest | None

    @classmethod
    def open(cls, engine: Engine, events: Path, source: str) -> "Earlier":
        """Look at the folder, which need not be there, from the point of view of a run on `source`."""
        try:
            return cls(engine=engine, events=events, source=source, manifest=manifest(events))
        except InputError:
            return cls(engine=engine, events=events, source=source, manifest=None)

    def merged(self, staged: Staged) -> ir.Table:
        """Return the good rows of a table without days, with those of earlier runs on other users or videos.

        A user's earlier watches are replaced as a whole: the places of two lists are not comparable.
        """
        fresh = staged.rows(ALL)
        file = file_of(self.events, staged.table)
        if self._foreign() or columns_of(file) != staged.columns:
            return fresh
        earlier = self.engine.read_parquet([file])
        return fresh.union(earlier.anti_join(fresh, staged.table.key[0]))

    def kept_whole(self, table: Table) -> TableSummary | None:
        """Return the summary of a table without days that an earlier run on the source brought, if any."""
        return self.manifest.tables.get(table.name) if self.manifest and not self._foreign() else None

    def kept_days(self, table: Table, staged: Staged | None) -> dict[str, Day]:
        """Return the days that the input no longer has.

        Raises:
            InputError: they come from another source, or have other columns.
        """
        folders = sorted((self.events / table.name).glob("date=*/part.parquet"))
        days = [file.parent.name.removeprefix("date=") for file in folders]
        vouched = self._vouched_days(table, staged)
        kept = [day for day in days if not (staged and day in staged.parts)]
        for day in kept:
            self._check(partition_of(self.events, table, day), staged.columns if staged else ())
        return {day: vouched.get(day) or self._measured(table, day) for day in kept}

    def stale_days(self, staged: Staged) -> list[str]:
        """Return the staged days that the events folder lacks or has otherwise."""
        vouched = self._vouched_days(staged.table, staged)
        return [
            day
            for day, measured in staged.parts.items()
            if vouched.get(day) != measured or not partition_of(self.events, staged.table, day).exists()
        ]

    def disown(self, stale: Mapping[str, Iterable[str]]) -> None:
        """Blank in the manifest the checksums of days, by table, that are about to be written.

        A kill half-way then leaves no changed day that the manifest still vouches for.
        """
        if self.manifest is None:
            return
        tables = {
            name: summary.without_checksums(stale.get(name, ()))
            for name, summary in self.manifest.tables.items()
        }
        if tables != self.manifest.tables:
            pending = self.manifest.model_copy(update={"tables": tables})
            write_json(manifest_path(self.events), pending.model_dump())

    def _vouched_days(self, table: Table, staged: Staged | None) -> dict[str, Day]:
        summary = self.manifest.tables.get(table.name) if self.manifest else None
        if not (self.manifest and summary and staged):
            return {}
        absent = {name for name in self.manifest.absent if name.startswith(f"{table.name}.")}
        days = summary.days if absent == set(staged.absent) else {}
        return {day: measured for day, measured in days.items() if measured.checksum}

    def _foreign(self) -> bool:
        return self.manifest is not None and self.manifest.source != self.source

    def _check(self, file: Path, columns: tuple[str, ...]) -> None:
        if self.manifest and self._foreign():
            raise InputError(
                f"The events in {self.events} hold days from the source {self.manifest.source} that this "
                f"input has not ({file}); ingest {self.source} into another folder."
            )
        found = columns_of(file)
        if found != columns:
            raise InputError(
                f"The events in {self.events} hold a day that this input has not ({file}), with the columns "
                f"{', '.join(found)} instead of {', '.join(columns) or 'none'}; ingest into another folder."
            )

    def _measured(self, table: Table, day: str) -> Day:
        file = partition_of(self.events, table, day)
        return measure_all(self.engine.read_parquet([file]), columns_of(file))


def columns_of(file: Path) -> tuple[str, ...]:
    """Return the columns of a Parquet file in order; none when it is not there or broken."""
    try:
        return tuple(pq.read_schema(file).names)
    except (OSError, pa.ArrowException):
        return ()
