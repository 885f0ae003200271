"""Opening the engine, and what it does when memory is short."""

import tempfile

import ibis
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from watchrank.config import EngineSettings
from watchrank.engine import connect
from watchrank.errors import InputError, WatchrankError


def test_engine_takes_its_settings():
    engine = connect(EngineSettings(memory_limit="300MB", threads=1))
    assert engine.backend.settings["threads"] == "1"
    assert engine.backend.settings["memory_limit"] == "286.1 MiB"
    assert engine.backend.settings["TimeZone"] == "UTC"
    engine.disconnect()


@pytest.mark.parametrize("limit", ["four", "4 potatoes", ""])
def test_memory_limit_that_is_no_size(limit):
    with pytest.raises(InputError, match=r"engine\.memory_limit is no size"):
        connect(EngineSettings(memory_limit=limit))


def test_sort_larger_than_memory_spills_and_cleans_up(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    engine = connect(EngineSettings(memory_limit="60MB", threads=1))
    numbers = ibis.range(0, 1_000_000).unnest().name("number").as_table()
    rows = numbers.mutate(key=-numbers.number, text=numbers.number.cast("string") + "0123456789" * 4)
    file = tmp_path / "sorted.parquet"
    engine.write_parquet(rows, file, ["key"])
    first = engine.read_parquet([file]).limit(1).to_pyarrow().to_pylist()
    engine.disconnect()
    assert first[0]["number"] == 999_999
    assert list(tmp_path.iterdir()) == [file]


def test_files_of_one_table_have_one_schema(tmp_path):
    """A column without NULL in one file may have one in the next."""
    engine = connect(EngineSettings(memory_limit="100MB", threads=1), joins_as_written=True)
    pq.write_table(pa.table({"number": [1, 2, None]}), tmp_path / "all.parquet")
    rows = engine.read_parquet([tmp_path / "all.parquet"])
    engine.write_parquet(rows.filter(rows.number > 1), tmp_path / "some.parquet", ["number"])
    engine.write_parquet(engine.read_parquet([tmp_path / "some.parquet"]), tmp_path / "again", ["number"])
    assert pq.read_schema(tmp_path / "again") == pq.read_schema(tmp_path / "all.parquet")
    assert "statistics_propagation" not in engine.backend.settings["disabled_optimizers"]
    engine.disconnect()


def test_memory_that_runs_out_is_no_fault_of_the_input(tmp_path):
    engine = connect(EngineSettings(memory_limit="5MB", threads=1))
    engine.backend.raw_sql("SET max_temp_directory_size = '0KB'")
    numbers = ibis.range(0, 4_000_000).unnest().name("number").as_table()
    rows = numbers.mutate(key=-numbers.number)
    said = r"ran out on the sort; raise engine\.memory_limit"
    with pytest.raises(WatchrankError, match=said) as caught, engine.running("the sort"):
        engine.write_parquet(rows, tmp_path / "sorted.parquet", ["key"])
    engine.disconnect()
    assert not isinstance(caught.value, InputError)
