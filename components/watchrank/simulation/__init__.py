"""A log of any size whose true expected watch time is known.

A catalogue of videos (catalogue.py) is shown, slate by slate (slates.py), to users (audience.py) who
click and watch by two models in closed form (behaviour.py, which states them). The log holds what
happened; the truth, in a folder of its own that no training stage reads, holds what was to be expected.

A chunk is a block of users over the whole period with a random generator of its own. So repeats within
a user are exact, and memory grows with `chunk_impressions`, the catalogue and the busiest user, not with
the log. The same settings give the same bytes; another `chunk_impressions` gives another log.
"""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from watchrank import schema
from watchrank.config import SimulationSettings
from watchrank.errors import InputError
from watchrank.simulation.audience import (
    Audience,
    draw_requests,
    make_audience,
    requests_per_user,
    user_blocks,
)
from watchrank.simulation.behaviour import act, impressions_of, search
from watchrank.simulation.catalogue import DAY_MS, Array, Catalogue, make_catalogue
from watchrank.simulation.slates import Shelf
from watchrank.storage import atomic_path, write_json
from watchrank.workspace import Workspace

_ARROW = {
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "string": pa.string(),
    "timestamp": pa.timestamp("us", tz="UTC"),
}
TRUTH_SCHEMA = pa.schema(
    [
        ("user_id", pa.int64()),
        ("video_id", pa.int64()),
        ("timestamp", _ARROW["timestamp"]),
        ("expected_watch_seconds", pa.float64()),
        ("click_probability", pa.float64()),
    ]
)
_SCHEMAS = {
    table.name: pa.schema([(column.name, _ARROW[column.dtype]) for column in table.columns])
    for table in schema.LOG_TABLES
} | {"truth": TRUTH_SCHEMA}
_PARTS = ("impressions", "searches", "truth")
_FIRST_START, _LAST_START = date(1980, 1, 1), date(2200, 1, 1)
_CATALOGUE_STREAM, _ACTIVITY_STREAM, _FIRST_CHUNK_STREAM = range(3)


def simulate_into(place: Workspace, settings: SimulationSettings) -> None:
    """Simulate the log and truth of a workspace, once.

    Raises:
        InputError: the workspace holds a log of other settings, whose events would mix with this one's.
    """
    wanted = settings.model_dump(mode="json")
    if place.simulation.exists():
        if json.loads(place.simulation.read_text()) != wanted:
            raise InputError(f"{place.root} holds a log of other settings; give another workspace.")
        return
    simulate(place.log, place.truth, settings)
    write_json(place.simulation, wanted)


def simulate(log: Path, truth: Path, settings: SimulationSettings) -> None:
    """Write a log in the own schema and the true expected watch time of its impressions.

    The same settings give the same bytes in every file. A log or truth of an earlier run is replaced.

    Args:
        log: folder for `users.parquet`, `videos.parquet`, `impressions/part-*.parquet` and
            `searches/part-*.parquet`.
        truth: folder for `part-*.parquet` with (user_id, video_id, timestamp, expected_watch_seconds,
            click_probability), row by row as the impressions' part of the same number.
        settings: sizes and seed.

    Raises:
        InputError: settings that no log can have, or a folder that holds something else. Nothing is written.
    """
    _check_settings(settings)
    _check_folders(log, truth)
    with ExitStack() as stack:
        paths = {
            "users": stack.enter_context(atomic_path(log / "users.parquet")),
            "videos": stack.enter_context(atomic_path(log / "videos.parquet")),
            "impressions": stack.enter_context(atomic_path(log / "impressions")),
            "searches": stack.enter_context(atomic_path(log / "searches")),
            "truth": stack.enter_context(atomic_path(truth)),
        }
        _write_log(paths, settings)


def _write_log(paths: Mapping[str, Path], settings: SimulationSettings) -> None:
    for name in _PARTS:
        paths[name].mkdir()
    catalogue = make_catalogue(settings, _generator(settings, _CATALOGUE_STREAM))
    shelf = Shelf(catalogue)
    counts = requests_per_user(settings, _generator(settings, _ACTIVITY_STREAM))
    _write(paths["videos"], _table("videos", catalogue.columns(), settings))
    with pq.ParquetWriter(paths["users"], _SCHEMAS["users"], compression="zstd") as users:
        for chunk, (first, last) in enumerate(user_blocks(counts, settings)):
            rng = _generator(settings, _FIRST_CHUNK_STREAM + chunk)
            audience = make_audience(first, last, catalogue, rng)
            users.write_table(_table("users", audience.columns(rng), settings))
            columns = _live(audience, counts[first:last], catalogue, shelf, settings, rng)
            for name in _PARTS:
                path = paths[name] / f"part-{chunk:05d}.parquet"
                _write(path, _table(name, columns[name], settings))


def _live(
    audience: Audience,
    counts: Array,
    catalogue: Catalogue,
    shelf: Shelf,
    settings: SimulationSettings,
    rng: np.random.Generator,
) -> dict[str, dict[str, Any]]:
    """Let a block of users live through the period; return the columns of each table of `_PARTS`."""
    requests = draw_requests(counts, settings.days, rng)
    slates = shelf.draw_slates(requests, audience, settings.slate, rng)
    shown = impressions_of(requests, slates, audience, catalogue)
    impressions, truth = act(shown, audience, catalogue, rng)
    searches = search(requests, audience, catalogue, shelf, settings.days * DAY_MS, rng)
    return {"impressions": impressions, "searches": searches, "truth": truth}


def _generator(settings: SimulationSettings, stream: int) -> np.random.Generator:
    return np.random.default_rng([settings.seed, stream])


def _table(name: str, columns: Mapping[str, Any], settings: SimulationSettings) -> pa.Table:
    """Build the table `name`; times come as milliseconds since the log's start."""
    start_us = (settings.start - date(1970, 1, 1)).days * DAY_MS * 1_000
    arrays = []
    for field in _SCHEMAS[name]:
        values = columns[field.name]
        if pa.types.is_timestamp(field.type):
            values = start_us + values * 1_000
        arrays.append((values if isinstance(values, pa.Array) else pa.array(values)).cast(field.type))
    return pa.Table.from_arrays(arrays, schema=_SCHEMAS[name])


def _write(path: Path, table: pa.Table) -> None:
    pq.write_table(table, path, compression="zstd")


def _check_settings(settings: SimulationSettings) -> None:
    if settings.seed < 0:
        raise InputError(f"simulation.seed is {settings.seed}: give a seed of 0 or more.")
    if settings.slate > settings.videos:
        raise InputError(
            f"simulation.slate is {settings.slate} but there are {settings.videos} videos: "
            "a slate shows different videos, so lower slate or raise videos."
        )
    if settings.slate > settings.impressions:
        raise InputError(
            f"simulation.impressions is {settings.impressions}, less than one slate of {settings.slate}: "
            "raise impressions or lower slate."
        )
    if not _FIRST_START <= settings.start <= _LAST_START:
        raise InputError(
            f"simulation.start is {settings.start}: give a day between {_FIRST_START} and {_LAST_START}."
        )


def _check_folders(log: Path, truth: Path) -> None:
    inside, outside = truth.resolve(), log.resolve()
    if inside.is_relative_to(outside) or outside.is_relative_to(inside):
        raise InputError(f"The truth folder {truth} and the log {log} share a folder: keep them apart.")
    for folder in (log, log / "impressions", log / "searches", truth):
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file, not a folder: remove it or give another folder.")
    for folder in (log / "impressions", log / "searches", truth):
        present = sorted(folder.iterdir()) if folder.exists() else []
        foreign = [path for path in present if not path.match("part-*.parquet")]
        if foreign:
            raise InputError(f"{foreign[0]} is no part of a simulated log: give a folder of its own.")
