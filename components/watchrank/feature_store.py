"""Feast on one folder of features: what was known at a past time, and what is known now, as arrays.

The definitions are in `feature_repo/`. Missing values become the same numbers offline and online: ids and
times `PAD_ID`, counts and sums 0, other floats NaN, lists empty (then padded).
"""

import contextlib
import io
import os
import re
import runpy
import sqlite3
import warnings
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ibis
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy.exc import IntegrityError, OperationalError

from watchrank.config import EngineSettings
from watchrank.engine import Engine, connect
from watchrank.errors import InputError, StorageError
from watchrank.features.files import record_of
from watchrank.schema import (
    CREATED_TIMESTAMP,
    EVENT_TIMESTAMP,
    PAD_ID,
    USER_ACTIVITY,
    USER_PROFILE,
    USER_SEARCH,
    USER_STATISTICS,
    USER_TENSORS,
    VIDEO_PROFILE,
    VIDEO_STATISTICS,
    Column,
    Dtype,
    Table,
)
from watchrank.storage import reading

with warnings.catch_warnings():  # Feast switches every library's deprecation warnings on
    from feast import Entity, FeatureService, FeatureStore, FeatureView

    from watchrank.offline_store import AsOfOfflineStoreConfig

USER_TABLES = (USER_PROFILE, USER_ACTIVITY, USER_STATISTICS, USER_SEARCH)
VIDEO_TABLES = (VIDEO_PROFILE, VIDEO_STATISTICS)

APPLY_ATTEMPTS = 10
"""Times that definitions are applied while other processes write the same ones to a registry in SQL."""

_COUNTED = (USER_STATISTICS, VIDEO_STATISTICS)
_ARROW: dict[Dtype, pa.DataType] = {
    "int64": pa.int64(),
    "float32": pa.float32(),
    "list<int64>": pa.list_(pa.int64()),
    "list<float32>": pa.list_(pa.float32()),
}


def open_store(
    feature_repo: Path, features: Path, state: Path, engine: EngineSettings = EngineSettings()
) -> FeatureStore:
    """Apply the definitions of `feature_repo` to the features of one folder and open the store.

    Args:
        feature_repo: folder of `feature_store.yaml` and `definitions.py`, or another such YAML file beside
            them: `feature_store_redis.yaml` keeps online features in Redis, `feature_store_sql.yaml` the
            registry in Postgres too.
        features: folder that `features.build_features` wrote.
        state: folder of the registry and the local online store; made when it is not there.
        engine: the memory and threads in which DuckDB reads the features.

    Raises:
        InputError: one of the two folders lacks its files, an environment variable of the file is not set, or
            its registry does not answer.
        StorageError: the local online store is damaged or cannot be written.
    """
    file = feature_repo if feature_repo.is_file() else feature_repo / "feature_store.yaml"
    for needed, remedy in (
        (file, "give the project's feature_repo folder"),
        (file.parent / "definitions.py", "give the project's feature_repo folder"),
        (record_of(features), "run `watchrank features` first"),
    ):
        if not needed.is_file():
            raise InputError(f"There is no {needed}; {remedy}.")
    state.mkdir(parents=True, exist_ok=True)
    places = {"WATCHRANK_FEATURES": str(features.resolve()), "WATCHRANK_STATE": str(state.resolve())}
    with _environment(places):
        _check_variables(file)
        definitions = runpy.run_path(str(file.parent / "definitions.py"))
        kinds = (Entity, FeatureView, FeatureService)
        with _sqlite_explained():
            store = _applied(file, [value for value in definitions.values() if isinstance(value, kinds)])
    settings = store.config.offline_store
    if isinstance(settings, AsOfOfflineStoreConfig):
        settings.engine = engine.duckdb
    return store


def engine_of(store: FeatureStore) -> EngineSettings:
    """Return the memory and threads that `open_store` was given; another offline store has its own."""
    settings = store.config.offline_store
    return settings.engine if isinstance(settings, AsOfOfflineStoreConfig) else EngineSettings()


def features_of(store: FeatureStore) -> Path:
    """Return the folder of features that a store was opened on."""
    return Path(store.get_feature_view(USER_PROFILE.name).batch_source.path).parent


def historical_features(
    store: FeatureStore, tables: Sequence[Table], entity_rows: pd.DataFrame
) -> dict[str, np.ndarray]:
    """Join each row with the features known at its time.

    Args:
        store: from `open_store`.
        tables: feature tables of one entity: `USER_TABLES` or `VIDEO_TABLES`.
        entity_rows: N rows, not none, of the entity's id and `event_timestamp` (microseconds, UTC).

    Returns:
        Each feature in the order of the rows: [N], or [N, L] for a list.
    """
    (found,) = historical_blocks(store, tables, entity_rows, len(entity_rows))
    return found


def historical_blocks(
    store: FeatureStore, tables: Sequence[Table], entity_rows: pd.DataFrame, block: int
) -> Iterator[dict[str, np.ndarray]]:
    """Join the rows of `historical_features` at once, and yield them in turn, `block` at a time.

    The features are read once, however many blocks there are, and one block is held.
    """
    numbered = entity_rows.assign(row_id=np.arange(len(entity_rows)))
    with reading(features_of(store)), _bounded_engine(store) as engine:
        job = store.get_historical_features(
            numbered, features=feature_refs(tables), filter_by_created_timestamp=True
        )
        joined = engine.backend.create_view("joined", job.table).order_by("row_id")
        start = 0
        for rows in _blocks(engine.batches(joined, block), block):
            expected = np.arange(start, start + len(rows))
            assert np.array_equal(rows["row_id"], expected), "the point-in-time join lost rows"
            yield _as_arrays(rows, tables)
            start += len(rows)
    assert start == len(entity_rows), "the point-in-time join lost rows"


def materialise(store: FeatureStore, until: datetime) -> None:
    """Write the newest features that are known at `until` (with a time zone) to the online store.

    Rows created later, by a backfill, do not count: this is what `historical_features` answers for `until`.

    Entities of which nothing is known by then keep what they have online.

    Raises:
        StorageError: the local online store cannot be written.
    """
    held = reading(features_of(store))
    with held, _bounded_engine(store), _sqlite_explained(), contextlib.redirect_stdout(io.StringIO()):
        store.materialize(datetime.fromtimestamp(0, UTC), until)


def push(store: FeatureStore, table: Table, rows: pd.DataFrame, known_from: datetime) -> None:
    """Write newer features of some entities to the online store alone, as a stream does between two builds.

    Args:
        store: from `open_store`.
        table: a feature table of `schema.FEATURE_TABLES`.
        rows: its key and all its columns; lists may be shorter than the schema's length.
        known_from: the instant from which the features hold, with a time zone.

    Raises:
        InputError: a column is missing or unknown.
    """
    wanted = {*table.key, *table.names}
    if wanted != set(rows.columns):
        raise InputError(
            f"Rows for {table.name} differ from its columns in {sorted(wanted ^ set(rows.columns))}; "
            f"give exactly {', '.join(sorted(wanted))}."
        )
    stamped = rows.assign(**dict.fromkeys((EVENT_TIMESTAMP, CREATED_TIMESTAMP), pd.Timestamp(known_from)))
    store.write_to_online_store(table.name, df=stamped)


def online_user_features(store: FeatureStore, user_ids: Sequence[int]) -> dict[str, np.ndarray]:
    """Return the newest features of n users, named, typed and shaped [n, *dims] as `schema.USER_TENSORS`."""
    return _user_tensors(_online_features(store, USER_TABLES, user_ids))


def newcomer_features(users: int) -> dict[str, np.ndarray]:
    """Return what `online_user_features` returns for so many users that the store does not know."""
    columns = [column for table in USER_TABLES for column in table.columns]
    nothing = pa.table({column.name: pa.nulls(users, _ARROW[column.dtype]) for column in columns})
    return _user_tensors(_as_arrays(nothing, USER_TABLES))


def online_video_features(store: FeatureStore, video_ids: Sequence[int]) -> dict[str, np.ndarray]:
    """Return the newest features of n videos, each [n], named and typed as `schema.VIDEO_TENSORS`."""
    columns = _online_features(store, VIDEO_TABLES, video_ids)
    return {"video_id": np.asarray(video_ids, dtype=np.int64), **columns}


def feature_refs(tables: Sequence[Table]) -> list[str]:
    """Return the features of the tables as Feast writes them."""
    return [f"{table.name}:{column.name}" for table in tables for column in table.columns]


def pad_lists(column: pa.ChunkedArray | pa.Array, length: int) -> np.ndarray:
    """Cut or pad N lists to [N, length]; ids are padded with `PAD_ID`, floats with 0. Missing is empty."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    dtype = column.type.value_type.to_pandas_dtype()
    padding = 0 if np.issubdtype(dtype, np.floating) else PAD_ID
    padded = np.full((len(column), length), padding, dtype=dtype)
    start = 0
    for chunk in chunks:
        cut = pc.list_slice(chunk, 0, length)
        lengths = pc.fill_null(pc.list_value_length(cut), 0).to_numpy(zero_copy_only=False)
        filled = np.arange(length) < lengths[:, None]
        padded[start : start + len(chunk)][filled] = cut.flatten().to_numpy(zero_copy_only=False)
        start += len(chunk)
    return padded


def _online_features(
    store: FeatureStore, tables: Sequence[Table], ids: Sequence[int]
) -> dict[str, np.ndarray]:
    key = tables[0].key[0]
    answer = store.get_online_features(feature_refs(tables), {key: [int(value) for value in ids]}).to_dict()
    columns = [column for table in tables for column in table.columns]
    arrays = {column.name: pa.array(answer[column.name], _ARROW[column.dtype]) for column in columns}
    return _as_arrays(pa.table(arrays), tables)


def _user_tensors(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {tensor.name: columns[tensor.name].reshape(-1, *tensor.dims) for tensor in USER_TENSORS}


def _blocks(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    """Yield tables of `rows` rows each but the last."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        if sum(map(len, held)) >= rows:
            whole = pa.Table.from_batches(held)
            yield whole.slice(0, rows)
            held = whole.slice(rows).to_batches()
    if held:
        yield pa.Table.from_batches(held)


def _as_arrays(rows: pa.Table, tables: Sequence[Table]) -> dict[str, np.ndarray]:
    return {
        column.name: _as_array(rows[column.name], column, _default(table, column))
        for table in tables
        for column in table.columns
    }


def _as_array(values: pa.ChunkedArray, column: Column, default: float) -> np.ndarray:
    if column.length is not None:
        return pad_lists(values, column.length)
    filled = pc.fill_null(values.cast(_ARROW[column.dtype]), pa.scalar(default, _ARROW[column.dtype]))
    array: np.ndarray = filled.to_numpy()
    return array


def _default(table: Table, column: Column) -> float:
    """Return what stands for a missing number."""
    if column.nullable:
        return float("nan")
    return 0 if table in _COUNTED else PAD_ID


def _applied(file: Path, definitions: list[Any]) -> FeatureStore:
    """Open the store of `file` with these definitions; again where another process made the same just now."""
    for attempt in range(APPLY_ATTEMPTS):
        try:
            store = FeatureStore(repo_path=str(file.parent), fs_yaml_file=file)
            store.apply(definitions)
        except IntegrityError:
            if attempt + 1 == APPLY_ATTEMPTS:
                raise
        except OperationalError as error:
            reason = str(error.orig).splitlines()[0]
            raise InputError(
                f"The registry of {file} does not answer: {reason}. Check its server and its variables."
            ) from None
        else:
            break
    return store


def _check_variables(file: Path) -> None:
    text = re.sub("#.*", "", file.read_text(encoding="utf-8"))
    for name in re.findall(r"\$\{(\w+)\}", text):
        if name not in os.environ:
            raise InputError(f"{file} needs the environment variable {name}, which is not set; set it.")


@contextlib.contextmanager
def _sqlite_explained() -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise StorageError(
            f"The local online store cannot be used: {error}. Free disk space or let it be written; if it is "
            "damaged, delete its online.db and run `watchrank features`."
        ) from None


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables, the only way to tell Feast's definitions where things lie."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            del os.environ[name]
        os.environ.update({name: value for name, value in before.items() if value is not None})


@contextlib.contextmanager
def _bounded_engine(store: FeatureStore) -> Iterator[Engine]:
    """Let Feast, which reads through Ibis' default engine, run in bounded memory and spill to disk."""
    engine, before = connect(engine_of(store), joins_as_written=True), ibis.options.default_backend
    ibis.set_backend(engine.backend)
    try:
        yield engine
    finally:
        ibis.options.default_backend = before
        engine.disconnect()
