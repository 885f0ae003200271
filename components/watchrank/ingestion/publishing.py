"""Bring staged tables into the events folder: only what changed is written."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import ibis.expr.types as ir

from watchrank.engine import Engine
from watchrank.events import file_of, partition_of, quarantine_of
from watchrank.ingestion.earlier import columns_of
from watchrank.ingestion.measure import measure, measure_all
from watchrank.ingestion.staging import Staged
from watchrank.storage import atomic_path


@dataclass(frozen=True)
class Publisher:
    """Writes to one events folder; `written` lists what it wrote, relative to the folder."""

    engine: Engine
    events: Path
    written: list[str] = field(default_factory=list)

    def days(self, staged: Staged, days: Iterable[str]) -> None:
        """Write those days, sorted by time and then by the rest of the key."""
        order = sorted(staged.table.key, key=lambda name: name != "timestamp")
        for day in days:
            target = partition_of(self.events, staged.table, day)
            self._write(staged.rows(day), target, order)

    def whole(self, staged: Staged, rows: ir.Table) -> int:
        """Write a table without days if it changed; return its number of rows."""
        target = file_of(self.events, staged.table)
        measured = measure_all(rows, staged.columns)
        same = columns_of(target) == staged.columns and measured == measure_all(
            self.engine.read_parquet([target]), staged.columns
        )
        if not same:
            self._write(rows, target, staged.table.key)
        return measured.rows

    def quarantine(self, staged: Staged) -> dict[str, int]:
        """Write the bad rows if they changed; return their number by reason."""
        target = quarantine_of(self.events, staged.table)
        if not staged.quarantined:
            target.unlink(missing_ok=True)
            return {}
        columns = (*staged.columns, "reason")
        same = columns_of(target) == columns and staged.quarantined == measure(
            self.engine.read_parquet([target]), staged.columns, "reason"
        )
        if not same:
            self._write(staged.bad_rows(), target, ("reason", *staged.columns))
        return {reason: group.rows for reason, group in staged.quarantined.items()}

    def _write(self, rows: ir.Table, target: Path, order: Sequence[str]) -> None:
        with atomic_path(target) as fresh:
            self.engine.write_parquet(rows, fresh, order)
        self.written.append(str(target.relative_to(self.events)))
