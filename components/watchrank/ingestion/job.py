"""The ingestion job: check the files, stage every table, then publish what changed."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from watchrank.config import EngineSettings, IngestionSettings
from watchrank.engine import Engine, connect
from watchrank.errors import InputError
from watchrank.events import DAILY, Day, Manifest, TableSummary, manifest_path
from watchrank.ingestion.adapter import Adapter
from watchrank.ingestion.earlier import Earlier
from watchrank.ingestion.files import Input, inspect
from watchrank.ingestion.kuairand import KUAIRAND
from watchrank.ingestion.movielens import MOVIELENS
from watchrank.ingestion.own import OWN
from watchrank.ingestion.publishing import Publisher
from watchrank.ingestion.rules import References
from watchrank.ingestion.staging import Staged, stage
from watchrank.schema import EARLIER_WATCHES, SEARCHES, SOURCE_TABLES, USERS, VIDEOS
from watchrank.storage import write_json, writing

SOURCES: dict[str, Adapter] = {"own": OWN, "kuairand": KUAIRAND, "movielens": MOVIELENS}


class IngestionReport(Manifest):
    """What the events folder holds after a run, and the files `written` by it, relative to the folder."""

    written: tuple[str, ...]


def ingest(
    data: Path, source: str, events: Path, settings: IngestionSettings, engine: EngineSettings
) -> IngestionReport:
    """Bring the log in `data` into `events` (see `watchrank.events`); only what changed is written.

    A second ingestion into the folder waits for this one.

    Args:
        data: the folder that holds the log's files.
        source: the format of the log, a key of `SOURCES`.
        events: the folder to write, new or from an earlier run. Days, users, videos and earlier watches of
            earlier runs that the input no longer has stay.
        settings: what counts as a good row.
        engine: which engine, its memory and threads; the typed log lies beside `events` meanwhile.

    Raises:
        InputError: the source is unknown, a file is missing or broken, or too many rows are bad. The events
            folder is as it was.
    """
    adapter = _adapter(source)
    if events.exists() and not events.is_dir():
        raise InputError(f"The path {events} is a file; give a folder for the events.")
    inputs = [inspect(data, table, adapter.get(table.name)) for table in SOURCE_TABLES]
    with writing(events), _workplace(engine, events) as (connection, folder):
        earlier = Earlier.open(connection, events, source)
        staged = _stage(connection, [found for found in inputs if found], folder, settings, earlier)
        kept = {table.name: earlier.kept_days(table, staged.get(table.name)) for table in DAILY}
        return _publish(earlier, staged, kept)


def _adapter(source: str) -> Adapter:
    if source not in SOURCES:
        raise InputError(f"There is no source {source!r}; give one of {', '.join(SOURCES)}.")
    return SOURCES[source]


@contextmanager
def _workplace(settings: EngineSettings, events: Path) -> Iterator[tuple[Engine, Path]]:
    """Open the engine and a staging folder beside the events, while the block lasts."""
    engine = connect(settings, joins_as_written=True)
    try:
        with (
            engine.running(f"the events in {events}"),
            tempfile.TemporaryDirectory(prefix=f".{events.name}.", dir=events.parent) as folder,
        ):
            yield engine, Path(folder)
    finally:
        engine.disconnect()


def _stage(
    engine: Engine, inputs: Sequence[Input], folder: Path, settings: IngestionSettings, earlier: Earlier
) -> dict[str, Staged]:
    """Stage all tables: users and videos first, which the others refer to."""
    staged: dict[str, Staged] = {}
    references = None
    for found in sorted(inputs, key=lambda found: found.table not in (USERS, VIDEOS)):
        if found.table not in (USERS, VIDEOS) and references is None:
            references = References(
                users=earlier.merged(staged[USERS.name]), videos=earlier.merged(staged[VIDEOS.name])
            )
        staged[found.table.name] = stage(engine, found, folder, settings, references)
    return staged


def _publish(earlier: Earlier, staged: dict[str, Staged], kept: dict[str, dict[str, Day]]) -> IngestionReport:
    publisher = Publisher(earlier.engine, earlier.events)
    stale = {name: earlier.stale_days(table) for name, table in staged.items() if table.table in DAILY}
    earlier.disown(stale)
    tables = {}
    for name, table in staged.items():
        if name in stale:
            publisher.days(table, stale[name])
            days = dict(sorted({**kept[name], **table.parts}.items()))
            rows = sum(day.rows for day in days.values())
        else:
            days, rows = {}, publisher.whole(table, earlier.merged(table))
        tables[name] = TableSummary(rows=rows, days=days, quarantined=publisher.quarantine(table))
    if kept_whole := earlier.kept_whole(EARLIER_WATCHES):
        tables.setdefault(EARLIER_WATCHES.name, kept_whole)
    manifest = Manifest(source=earlier.source, absent=_absent(staged), tables=tables)
    if manifest != earlier.manifest or any(stale.values()):
        write_json(manifest_path(earlier.events), manifest.model_dump())
    return IngestionReport(**manifest.model_dump(), written=tuple(publisher.written))


def _absent(staged: dict[str, Staged]) -> tuple[str, ...]:
    lacking = [name for table in staged.values() for name in table.absent]
    return tuple(sorted(lacking if SEARCHES.name in staged else [*lacking, f"{SEARCHES.name}.query"]))
