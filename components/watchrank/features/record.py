"""What a features folder was built by: whether a later build goes on from it, or starts afresh."""

import hashlib
import logging
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from watchrank import events
from watchrank.config import FeatureSettings
from watchrank.features.files import record_of
from watchrank.schema import EARLIER_WATCHES, FEATURE_ORIGIN, FEATURE_TABLES
from watchrank.storage import write_json

logger = logging.getLogger(__name__)


class LogRecord(BaseModel):
    """What a log held: the checksum of each day by table, and that of the watches before the log."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    days: dict[str, dict[date, str]] = {}
    earlier_watches: str = ""

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Return the record of an events folder."""
        tables = events.manifest(folder).tables
        daily = {table.name: tables[table.name].days for table in events.DAILY if table.name in tables}
        days = {
            name: {date.fromisoformat(day): found.checksum for day, found in of_table.items()}
            for name, of_table in daily.items()
        }
        if EARLIER_WATCHES.name not in tables:
            return cls(days=days)
        with events.file_of(folder, EARLIER_WATCHES).open("rb") as file:
            return cls(days=days, earlier_watches=hashlib.file_digest(file, "sha256").hexdigest())

    def new_days(self, former: Self) -> list[date] | None:
        """Return the days that a former log lacked, in order; None where what it had is now otherwise."""
        new: set[date] = set()
        for name in {*self.days, *former.days}:
            had, has = former.days.get(name, {}), self.days.get(name, {})
            if "" in has.values() or any(has.get(day) != checksum for day, checksum in had.items()):
                return None
            new |= has.keys() - had.keys()
        return sorted(new) if self.earlier_watches == former.earlier_watches else None


class Build(BaseModel):
    """What made the tables: the definitions, as a digest, the settings, the log and its horizon.

    The horizon is the end of the log, an instant after its last event.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    definitions: str
    settings: FeatureSettings
    horizon: datetime
    log: LogRecord

    @classmethod
    def of(cls, settings: FeatureSettings, horizon: datetime, log: LogRecord = LogRecord()) -> Self:
        """Return the record of a build by this package, whose every change is another definition."""
        digest = hashlib.sha256(repr((FEATURE_TABLES, FEATURE_ORIGIN)).encode())
        for file in sorted(Path(__file__).parent.glob("*.py")):
            digest.update(file.read_bytes())
        return cls(definitions=digest.hexdigest(), settings=settings, horizon=horizon, log=log)

    def write(self, features: Path) -> None:
        """Write the record into the folder."""
        write_json(record_of(features), self.model_dump(mode="json"))

    def former(self, features: Path) -> Self | None:
        """Return the record of the folder; None, which is logged, where this build cannot go on from it."""
        if not features.exists():
            return None
        try:
            found = type(self).model_validate_json(record_of(features).read_bytes())
        except (OSError, ValidationError):
            found = None
        reason = self._otherwise(found)
        if reason:
            logger.warning("The features in %s %s: built afresh, all as known in time.", features, reason)
            return None
        return found

    def unchanged_until(self, former: Self) -> datetime | None:
        """Return the instant until which the log is as a former build saw it; None where no such one is.

        It is not before the former horizon: what came since came after all that was there.
        """
        new = self.log.new_days(former.log)
        if new is None:
            return None
        start = datetime.combine(new[0], time(), UTC) if new else self.horizon
        return start if start >= former.horizon else None

    def _otherwise(self, former: Self | None) -> str:
        if former is None:
            return "do not say what built them"
        if former.definitions != self.definitions:
            return "are defined otherwise"
        if former.settings != self.settings:
            return "have other settings"
        return "are of a log that went further" if former.horizon > self.horizon else ""
