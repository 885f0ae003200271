"""What a rebuild may say of the past: former rows stay, and what is new or differs is known from now on.

A log comes late or is corrected; built from it, the features of a past day are not those that were served.
So each row says from when on it was known, its `created_timestamp`. Of an entity at time t that row counts
which has the greatest event timestamp, then the greatest created timestamp, of those with both up to t.

The only clock is the log: it is taken to have come at its *horizon*, its end. Events after the former log's
horizon are taken to have come in time, and their rows are known from their event timestamp on. Where the
horizon stays, so does the time: what the former build added at it is replaced.
"""

import filecmp
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import reduce
from operator import and_
from pathlib import Path
from tempfile import TemporaryDirectory

import ibis
import ibis.expr.types as ir

from watchrank.engine import Engine
from watchrank.features.files import files_of, write
from watchrank.features.record import Build
from watchrank.schema import (
    CREATED_TIMESTAMP,
    EVENT_TIMESTAMP,
    USER_PROFILE,
    USER_STATISTICS,
    VIDEO_PROFILE,
    Table,
)
from watchrank.storage import atomic_path

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Backfill:
    """How the rows of one table go from a former build into a new one.

    Attributes:
        table: of `schema.FEATURE_TABLES`.
        since: the former build's horizon.
        horizon: the new build's, not earlier.
        lag: seconds for which rows are held back: one stamped s covers the events before s - lag.
    """

    table: Table
    since: datetime
    horizon: datetime
    lag: int = 0

    def rows(self, new: ir.Table, kept: ir.Table, added: ir.Table) -> ir.Table:
        """Return what the table holds: the past as it was known, what is added to it, what came since."""
        return kept.union(added, new.filter(~self._past(new)))

    def kept(self, former: ir.Table) -> ir.Table:
        """Return the rows of the past that were known before the new horizon."""
        return former.filter(self._past(former), former[CREATED_TIMESTAMP] < _utc(self.horizon))

    def added(self, new: ir.Table, kept: ir.Table) -> ir.Table:
        """Return what `new` says of the past, stamps unique, and the newest rows of `kept` do not.

        A user or video that is new came with the events that name it, not late: ingestion takes no event
        without them.
        """
        newest = kept.group_by(self._stamp).agg(kept[CREATED_TIMESTAMP].max().name(CREATED_TIMESTAMP))
        current = kept.semi_join(newest, [*self._stamp, CREATED_TIMESTAMP])
        past = new.filter(self._past(new)).drop(CREATED_TIMESTAMP)
        joined = past.left_join(current, self._stamp, rname="{name}_kept")
        unknown = joined[CREATED_TIMESTAMP].isnull()
        same = reduce(and_, (joined[name].identical_to(joined[f"{name}_kept"]) for name in self.table.names))
        named = self.since if self.table in (USER_PROFILE, VIDEO_PROFILE) else self.horizon
        known = unknown.ifelse(_utc(named), _utc(self.horizon))
        known = ibis.greatest(joined[EVENT_TIMESTAMP], known)
        changed = joined.mutate(**{CREATED_TIMESTAMP: known}).filter(unknown | ~same)
        return changed.select(new.columns)

    def gone(self, new: ir.Table, kept: ir.Table) -> ir.Table:
        """Return the stamps, keys and event timestamp, that `kept` has and `new` has not."""
        return kept.select(self._stamp).distinct().anti_join(new, self._stamp)

    def instead(self, gone: ir.Table, older: ir.Table) -> ir.Table:
        """Return rows that say, at the stamps of `gone`, what the row of `older` before says, or NULL."""
        before = older.select(*self.table.key, before=EVENT_TIMESTAMP)
        pairs = gone.left_join(before, [*self.table.key, gone[EVENT_TIMESTAMP] > before.before])
        last = pairs.group_by(self._stamp).agg(before=pairs.before.max())
        values = older.select(*self.table.key, *self.table.names, before=EVENT_TIMESTAMP)
        found = last.left_join(values, [*self.table.key, "before"])
        return found.mutate(**{CREATED_TIMESTAMP: found[EVENT_TIMESTAMP]}).select(older.columns)

    @property
    def _stamp(self) -> list[str]:
        return [*self.table.key, EVENT_TIMESTAMP]

    def _past(self, rows: ir.Table) -> ir.BooleanValue:
        """Tell which rows cover only events that the former log could have."""
        covered: ir.TimestampValue = rows[EVENT_TIMESTAMP] - ibis.interval(seconds=self.lag)
        return covered <= _utc(self.since)


def keep_past(
    con: Engine,
    tables: Sequence[Table],
    former: Path,
    fresh: Path,
    stage: Path,
    since: datetime,
    build: Build,
) -> None:
    """Bring the past as a former build knew it into a new build, one file at a time.

    Args:
        con: the engine.
        tables: of `schema.FEATURE_TABLES`.
        former: folder of the former build.
        fresh: folder of the new build, with each row created at its event timestamp; changed in place.
        stage: folder for what lies on disk meanwhile.
        since: the former build's horizon.
        build: the new build.
    """
    for table in tables:
        lag = build.settings.user_statistics_lag_seconds if table is USER_STATISTICS else 0
        backfill = Backfill(table=table, since=since, horizon=build.horizon, lag=lag)
        names = {file.relative_to(root) for root in (former, fresh) for file in files_of(root, table)}
        added = 0
        for name in sorted(names, reverse=True):  # what is older must still be as the new build has it
            older = [file for file in files_of(fresh, table) if file.relative_to(fresh) <= name]
            with TemporaryDirectory(dir=stage) as room:
                added += _merge(con, backfill, former / name, fresh / name, older, Path(room))
        logger.info("%s: %d rows of the past are known only now.", table.name, added)


def _merge(
    con: Engine, backfill: Backfill, former: Path, fresh: Path, older: Sequence[Path], stage: Path
) -> int:
    """Bring one file of a former build into that of the new one; return how many rows of it were late."""
    if former.exists() and fresh.exists() and filecmp.cmp(former, fresh, shallow=False):
        return 0
    before, new = _rows(con, former, fresh), _rows(con, fresh, former)
    kept = backfill.kept(before)
    gone = backfill.gone(new, kept)
    says = new
    if gone.count().to_pyarrow().as_py():
        says = new.union(backfill.instead(gone, con.read_parquet(older) if older else new))
    added = stage / "added.parquet"
    write(con, backfill.added(says, kept), backfill.table, added)
    late = con.read_parquet([added])
    with atomic_path(fresh) as whole:
        write(con, backfill.rows(new, kept, late), backfill.table, whole)
    return int(late.filter(late[CREATED_TIMESTAMP] > late[EVENT_TIMESTAMP]).count().to_pyarrow().as_py())


def _rows(con: Engine, file: Path, other: Path) -> ir.Table:
    """Return the rows of a file, or none, with the columns of another, where it is not there."""
    if file.exists():
        return con.read_parquet([file])
    return con.read_parquet([other]).filter(ibis.literal(False))


def _utc(time: datetime) -> ir.TimestampScalar:
    return ibis.literal(time, "timestamp('UTC')")
