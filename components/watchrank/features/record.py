"""What a features folder was built by: whether a later build goes on from it, or starts afresh."""

import hashlib
import logging
from datetime import datetime
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from watchrank.config import FeatureSettings
from watchrank.features.files import record_of
from watchrank.schema import FEATURE_ORIGIN, FEATURE_TABLES
from watchrank.storage import write_json

logger = logging.getLogger(__name__)


class Build(BaseModel):
    """What made the tables: the definitions, as a digest, the settings, and the horizon of the log.

    The horizon is the end of the log, an instant after its last event.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    definitions: str
    settings: FeatureSettings
    horizon: datetime

    @classmethod
    def of(cls, settings: FeatureSettings, horizon: datetime) -> Self:
        """Return the record of a build by this package, whose every change is another definition."""
        digest = hashlib.sha256(repr((FEATURE_TABLES, FEATURE_ORIGIN)).encode())
        for file in sorted(Path(__file__).parent.glob("*.py")):
            digest.update(file.read_bytes())
        return cls(definitions=digest.hexdigest(), settings=settings, horizon=horizon)

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

    def _otherwise(self, former: Self | None) -> str:
        if former is None:
            return "do not say what built them"
        if former.definitions != self.definitions:
            return "are defined otherwise"
        if former.settings != self.settings:
            return "have other settings"
        return "are of a log that went further" if former.horizon > self.horizon else ""
