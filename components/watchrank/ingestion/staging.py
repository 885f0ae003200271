"""Bring a table's files into a staging folder: typed, judged and split into days, in one pass, out of core.

`part=<day>/` (or `part=all/`, for a table without days) holds the good rows, `part=bad/` the others. Nothing
of the events folder is touched here.
"""

import statistics
from dataclasses import dataclass, replace
from pathlib import Path

import ibis
import ibis.expr.types as ir

from watchrank.config import IngestionSettings
from watchrank.engine import Engine
from watchrank.errors import InputError
from watchrank.events import DAILY, Day
from watchrank.ingestion.files import Input, check_text
from watchrank.ingestion.measure import measure
from watchrank.ingestion.rules import References, judge
from watchrank.ingestion.values import UNREAD
from watchrank.schema import Table

ALL = "all"
BAD = "bad"


@dataclass(frozen=True, kw_only=True)
class Staged:
    """A staged table: its columns in the schema's order, its good rows by part, its bad ones by reason."""

    engine: Engine
    table: Table
    columns: tuple[str, ...]
    folder: Path
    parts: dict[str, Day]
    quarantined: dict[str, Day]

    @property
    def absent(self) -> tuple[str, ...]:
        """The schema's columns that the source lacks, as `table.column`."""
        return tuple(f"{self.table.name}.{name}" for name in self.table.names if name not in self.columns)

    def rows(self, part: str) -> ir.Table:
        """Return the good rows of a part, in no order."""
        return self._open(part).select(*self.columns)

    def bad_rows(self) -> ir.Table:
        """Return the bad rows: each value as text, as it stood in the source where it could not be read."""
        rows = self._open(BAD)
        texts = {name: ibis.coalesce(rows[UNREAD + name], rows[name].cast("string")) for name in self.columns}
        return rows.select(**texts, reason=rows.reason)

    def bad_days(self) -> dict[str, dict[str, int]]:
        """Return how many bad rows each day has, by reason, most first, where their time is known."""
        if not self.quarantined:
            return {}
        rows = self._open(BAD)
        groups = rows.group_by(day=rows.timestamp.date().cast("string"), reason=rows.reason)
        counted = groups.agg(rows=rows.count()).filter(lambda group: group.day.notnull())
        found: dict[str, dict[str, int]] = {}
        for group in counted.order_by("day", ibis.desc("rows"), "reason").to_pyarrow().to_pylist():
            found.setdefault(group["day"], {})[group["reason"]] = group["rows"]
        return found

    def _open(self, part: str) -> ir.Table:
        return self.engine.read_parquet((self.folder / f"part={part}").glob("*.parquet"))


def stage(
    engine: Engine,
    source: Input,
    folder: Path,
    settings: IngestionSettings,
    references: References | None = None,
) -> Staged:
    """Stage a table below `folder`; its rows must refer to `references`, when given.

    Raises:
        InputError: a file is broken, there are no rows, or too many are bad.
    """
    table, columns, target = source.table, source.columns, folder / source.table.name
    try:
        with engine.running(f"the table {table.name} ({source.place})"):
            judged = judge(source.rows(engine), table, settings, references)
            engine.write_partitions(judged.mutate(part=_part(judged, table)), target, "part")
    except InputError:
        check_text(source.files)
        raise
    if not any(target.rglob("*.parquet")):
        raise InputError(f"The table {table.name} ({source.place}) holds no rows; export it again.")
    staged = _measured(engine, table, columns, target)
    if table in DAILY and staged.parts:
        _check_days(staged, source, settings.max_quarantine_share_a_day)
    _check_share(staged, source, settings.max_quarantine_share)
    return staged


def _part(judged: ir.Table, table: Table) -> ir.Value:
    part = judged.timestamp.date().cast("string") if table in DAILY else ibis.literal(ALL)
    return judged.reason.isnull().ifelse(part, BAD)


def _measured(engine: Engine, table: Table, columns: tuple[str, ...], folder: Path) -> Staged:
    rows = engine.read_parquet(folder.rglob("*.parquet"), partitioned=True)
    good = rows.filter(rows.reason.isnull()).mutate(part=rows.part.cast("string"))
    staged = Staged(
        engine=engine,
        table=table,
        columns=columns,
        folder=folder,
        parts=measure(good, columns, "part"),
        quarantined={},
    )
    if not (folder / f"part={BAD}").exists():
        return staged
    return replace(staged, quarantined=measure(staged.bad_rows(), columns, "reason"))


def _check_share(staged: Staged, source: Input, limit: float) -> None:
    bad = sum(group.rows for group in staged.quarantined.values())
    rows = bad + sum(part.rows for part in staged.parts.values())
    if bad <= limit * rows and bad < rows:
        return
    reasons = sorted(staged.quarantined.items(), key=lambda item: (-item[1].rows, item[0]))
    counts = ", ".join(f"{group.rows:,} {reason}" for reason, group in reasons)
    raise InputError(
        f"Of the table {staged.table.name} ({source.place}) {bad:,} of {rows:,} rows ({bad / rows:.1%}) "
        f"are bad and at most {limit:.1%} may be, never all: {counts}; an example of {reasons[0][0]} is "
        f"{_example(staged, reasons[0][0])}; correct the files or raise ingestion.max_quarantine_share."
    )


def _check_days(staged: Staged, source: Input, limit: float) -> None:
    """Look at each day alone: one bad day hardly counts among many; nor do strays on a day without others."""
    typical = statistics.median(part.rows for part in staged.parts.values())
    for day, reasons in staged.bad_days().items():
        bad, good = sum(reasons.values()), staged.parts.get(day)
        rows = bad + (good.rows if good else 0)
        if bad > limit * max(rows, typical):
            counts = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
            raise InputError(
                f"On {day} {bad:,} of {rows:,} rows of the table {staged.table.name} ({source.place}) are "
                f"bad and at most {limit:.1%} of a day's may be: {counts}; correct the files or raise "
                "ingestion.max_quarantine_share_a_day."
            )


def _example(staged: Staged, reason: str) -> str:
    rows = staged.bad_rows()
    first = rows.filter(rows.reason == reason).drop("reason").order_by(*staged.columns).limit(1)
    values = first.to_pyarrow().to_pylist()[0]
    return ", ".join(f"{name}={value!r}" for name, value in values.items() if value is not None)[:300]
