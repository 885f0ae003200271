"""Opening the engine, and what it does when memory is short."""

import tempfile

import ibis
import pytest

from watchrank import engine as engines
from watchrank.config import EngineSettings
from watchrank.errors import InputError, WatchrankError


def test_engine_takes_its_settings():
    engine = engines.connect(EngineSettings(memory_limit="300MB", threads=1))
    assert engine.settings["threads"] == "1"
    assert engine.settings["memory_limit"] == "286.1 MiB"
    assert engine.settings["TimeZone"] == "UTC"
    engine.disconnect()


@pytest.mark.parametrize("limit", ["four", "4 potatoes", ""])
def test_memory_limit_that_is_no_size(limit):
    with pytest.raises(InputError, match=r"engine\.memory_limit is no size"):
        engines.connect(EngineSettings(memory_limit=limit))


def test_sort_larger_than_memory_spills_and_cleans_up(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    engine = engines.connect(EngineSettings(memory_limit="60MB", threads=1))
    numbers = ibis.range(0, 1_000_000).unnest().name("number").as_table()
    rows = numbers.mutate(text=numbers.number.cast("string") + "0123456789" * 4).order_by(ibis.desc("text"))
    file = tmp_path / "sorted.parquet"
    engines.write_parquet(engine, rows, file)
    first = engines.read_parquet(engine, [file]).limit(1).to_pyarrow().to_pylist()
    engine.disconnect()
    assert first[0]["number"] == 999_999
    assert list(tmp_path.iterdir()) == [file]


def test_memory_that_runs_out_is_no_fault_of_the_input(tmp_path):
    engine = engines.connect(EngineSettings(memory_limit="5MB", threads=1))
    engine.raw_sql("SET max_temp_directory_size = '0KB'")
    rows = ibis.range(0, 4_000_000).unnest().name("number").as_table().order_by(ibis.desc("number"))
    said = r"ran out on the sort; raise engine\.memory_limit"
    with pytest.raises(WatchrankError, match=said) as caught, engines.running("the sort"):
        engines.write_parquet(engine, rows, tmp_path / "sorted.parquet")
    engine.disconnect()
    assert not isinstance(caught.value, InputError)
