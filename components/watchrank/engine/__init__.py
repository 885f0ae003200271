"""The engine below the Ibis expressions: DuckDB on one machine, or Spark on a cluster.

Ingestion and features are engine-neutral expressions; opening an engine, reading and writing files and
telling a bad file from a broken engine are not, and stand here.
"""

from watchrank.config import EngineSettings
from watchrank.engine.base import Engine
from watchrank.engine.duckdb import DuckDB
from watchrank.errors import InputError

__all__ = ["DuckDB", "Engine", "connect"]


def connect(settings: EngineSettings, joins_as_written: bool = False) -> Engine:
    """Open the engine that the settings choose, in UTC.

    Args:
        settings: which engine, and what it may take.
        joins_as_written: hold the right table of a join in memory, where the engine cannot tell how many
            rows there are.

    Raises:
        InputError: a setting is of no use, or the engine is not installed.
    """
    if settings.kind == "duckdb":
        return DuckDB.open(settings, joins_as_written)
    try:
        from watchrank.engine.spark import Spark
    except ImportError as error:
        raise InputError(
            f"The engine spark is not installed ({error}); install watchrank with the extra [spark]."
        ) from None
    return Spark.open(settings)
