"""Raw logs to events: read, typed, deduplicated, the bad rows set apart, one partition a day."""

from watchrank.ingestion.job import IngestionReport, ingest

__all__ = ["IngestionReport", "ingest"]
