"""Ingestion and features on Spark, in local mode, against DuckDB's: every file, every row, every bit."""

import csv
import gzip
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import ibis
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from watchrank.config import EngineSettings, FeatureSettings, IngestionSettings, SimulationSettings
from watchrank.engine import Engine, connect
from watchrank.errors import InputError
from watchrank.events import manifest
from watchrank.features import build_features
from watchrank.features.text import search_tokens, text_ids
from watchrank.ingestion import ingest
from watchrank.ingestion.measure import measure
from watchrank.ingestion.values import parse
from watchrank.simulation import simulate

pytestmark = pytest.mark.slow

AS_OF = datetime(2026, 6, 1, tzinfo=UTC)

CONF = {
    "spark.default.parallelism": "1",
    "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
    "spark.driver.memory": "2g",
    "spark.sql.adaptive.enabled": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.shuffle.partitions": "2",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
}
"""For few rows and many queries."""


@pytest.fixture(scope="module")
def spark(program: Callable[[str], str]) -> Iterator[EngineSettings]:
    """The engine on a session that all tests here share."""
    if "JAVA_HOME" not in os.environ:
        program("java")
    from pyspark.sql import SparkSession

    session = SparkSession.builder.master("local[2]").config(map=CONF).getOrCreate()
    session.sparkContext.setLogLevel("OFF")
    yield EngineSettings(kind="spark")
    session.stop()


@pytest.fixture(scope="module")
def engines(spark: EngineSettings) -> Iterator[tuple[Engine, Engine]]:
    """DuckDB and Spark."""
    pair = connect(EngineSettings()), connect(spark)
    yield pair
    for engine in pair:
        engine.disconnect()


@dataclass(frozen=True)
class Built:
    """What an engine made of a log."""

    events: Path
    features: Path

    @classmethod
    def by(cls, engine: EngineSettings, data: Path, place: Path, source: str = "own") -> "Built":
        built = cls(place / "events", place / "features")
        settings = IngestionSettings(as_of=AS_OF, max_quarantine_share=0.2)
        ingest(data, source, built.events, settings, engine)
        build_features(built.events, built.features, FeatureSettings(), engine)
        return built


def rows_of(folder: Path) -> dict[str, tuple[dict[str, str], list[dict]]]:
    """Return types and rows, in their order, of every Parquet file below a folder."""
    found = {}
    for file in sorted(folder.rglob("*.parquet")):
        table = pq.ParquetFile(file).read()
        types = {
            field.name: f"list of {field.type.value_type}"
            if pa.types.is_list(field.type)
            else str(field.type)
            for field in table.schema
        }
        found[str(file.relative_to(folder))] = types, table.to_pylist()
    return found


def assert_same(one: Path, other: Path) -> None:
    expected, found = rows_of(one), rows_of(other)
    assert found.keys() == expected.keys()
    for name, (types, rows) in expected.items():
        assert found[name][0] == types, name
        assert found[name][1] == rows, name


def counts(events: Path) -> dict[str, tuple]:
    """Return the numbers that the manifest tells of each table."""
    return {
        name: (table.rows, table.quarantined, {day: found.rows for day, found in table.days.items()})
        for name, table in manifest(events).tables.items()
    }


def came_late(row: dict) -> bool:
    return row["created_timestamp"] > row["event_timestamp"]


def read_csv(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") if file.suffix == ".csv" else gzip.open(file, "rt", newline="") as stream:
        return list(csv.DictReader(stream))


def write_csv(file: Path, rows: list[dict[str, str]]) -> None:
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def write_slice(file: Path, folder: Path, keep: Callable[[dict[str, str]], bool]) -> int:
    """Write the rows of a CSV file that `keep` takes; return how many."""
    rows = [row for row in read_csv(file) if keep(row)]
    write_csv(folder / file.name.removesuffix(".gz"), rows)
    return len(rows)


BAD = {
    "unparsable timestamp": {"timestamp": "2026-01"},
    "unparsable user_id": {"user_id": "1d"},
    "unparsable watch_seconds": {"watch_seconds": "inf"},
    "missing video_id": {"video_id": ""},
    "missing clicked": {"clicked": " "},
    "user_id out of range": {"user_id": "-1"},
    "negative watch time": {"watch_seconds": "-0.00012345"},
    "absurd watch time": {"watch_seconds": "12345678.5", "clicked": "T"},
    "watch time without a click": {"clicked": "0", "watch_seconds": "1e-7"},
    "unknown user": {"user_id": "1_000_000"},
    "unknown video": {"video_id": "1e9"},
    "time in the future": {"timestamp": "2026/07/01 12:30 Europe/Paris"},
}
"""What of a row makes it bad, by the reason."""


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A log of two days with bad rows in it, and the same with a third day, a late and a corrected row."""
    folder = tmp_path_factory.mktemp("simulated")
    size = SimulationSettings(impressions=1_500, users=40, videos=50, channels=8, days=3)
    simulate(folder / "log", folder / "truth", size)
    pa_csv.write_csv(pq.read_table(folder / "log" / "impressions", partitioning=None), folder / "all.csv")
    rows = read_csv(folder / "all.csv")
    new_day = datetime(2026, 1, 3, tzinfo=UTC)
    early = [row for row in rows if row["timestamp"] < str(new_day)]
    watch = next(row for row in early if float(row["watch_seconds"]) > 0)
    bad = [{**watch, **change} for change in BAD.values()]
    corrected = {**watch, "watch_seconds": str(float(watch["watch_seconds"]) / 3)}
    late = early.pop(len(early) // 2)
    for name, impressions, end in (
        ("first", [*early, *early[:3], *bad], new_day),
        ("second", [row if row != watch else corrected for row in [late, *rows, *bad[:3]]], datetime.max),
    ):
        shutil.copytree(folder / "log", folder / name)
        shutil.rmtree(folder / name / "impressions")
        write_csv(folder / name / "impressions.csv", impressions)
        searches = folder / name / "searches" / "part-00000.parquet"
        table = pq.read_table(searches, partitioning=None)
        pq.write_table(table.filter(pc.less(table["timestamp"], end.replace(tzinfo=UTC))), searches)
    return folder / "first", folder / "second"


@pytest.fixture(scope="module")
def built(
    logs: tuple[Path, Path], spark: EngineSettings, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Built, Built]:
    """The first log by DuckDB and by Spark."""
    return tuple(
        Built.by(engine, logs[0], tmp_path_factory.mktemp(engine.kind))
        for engine in (EngineSettings(), spark)
    )


def test_a_log_with_bad_rows_becomes_the_same_tables(built: tuple[Built, Built]) -> None:
    of_duckdb, of_spark = built
    summary = manifest(of_duckdb.events).tables["impressions"]
    assert summary.quarantined == dict.fromkeys(BAD, 1) | {"duplicate": 3}
    assert_same(of_duckdb.events, of_spark.events)
    assert_same(of_duckdb.features, of_spark.features)
    assert {len(rows) > 0 for _, rows in rows_of(of_spark.features).values()} == {True}
    assert counts(of_duckdb.events) == counts(of_spark.events)


def test_a_longer_log_adds_the_same_rows(
    built: tuple[Built, Built], logs: tuple[Path, Path], spark: EngineSettings, tmp_path: Path
) -> None:
    """Over the first, and over what the other engine made of the first."""
    of_duckdb, of_spark = built
    shutil.copytree(of_duckdb.features.parent, tmp_path / "duckdb")
    shutil.copytree(of_spark.features.parent, tmp_path / "spark")
    expected = Built.by(EngineSettings(), logs[1], tmp_path / "duckdb")
    found = Built.by(spark, logs[1], tmp_path / "spark")
    assert_same(expected.events, found.events)
    assert_same(expected.features, found.features)
    late = [row for _, rows in rows_of(found.features).values() for row in rows if came_late(row)]
    assert late
    assert counts(expected.events) == counts(found.events)


def test_a_second_run_on_the_same_log_writes_nothing(
    built: tuple[Built, Built], logs: tuple[Path, Path], spark: EngineSettings
) -> None:
    _, of_spark = built
    settings = IngestionSettings(as_of=AS_OF, max_quarantine_share=0.2)
    assert ingest(logs[0], "own", of_spark.events, settings, spark).written == ()


def test_kuairand_becomes_the_same_tables(shared_data: Path, spark: EngineSettings, tmp_path: Path) -> None:
    """The users below 200 and their first two days."""
    data, source = tmp_path / "data", shared_data / "kuairand_pure"
    data.mkdir()
    users = write_slice(source / "user_features_pure.csv.gz", data, lambda row: int(row["user_id"]) < 200)
    shown = write_slice(
        source / "log_standard_4_25_to_5_04_pure.csv.gz",
        data,
        lambda row: int(row["user_id"]) < 200 and row["date"] < "20220427",
    )
    shutil.copy(source / "video_features_basic_pure.csv.gz", data)
    before = pq.read_table(source / "user_sequences.parquet")
    before = before.filter(pc.less(before["user_id"], 200)).select(
        ["user_id", "last_time_ms", "long_watch_seq"]
    )
    pq.write_table(before, data / "user_sequences.parquet")
    assert users == 200
    assert shown > 100
    expected = Built.by(EngineSettings(), data, tmp_path / "duckdb", "kuairand")
    found = Built.by(spark, data, tmp_path / "spark", "kuairand")
    assert_same(expected.events, found.events)
    assert_same(expected.features, found.features)
    assert counts(expected.events) == counts(found.events)


HEADER = "user_id,video_id,timestamp,clicked,watch_seconds\n"
FAULTS = {
    "short line": (HEADER + "1,10,2026-01-05T10:00:00Z,true,5\n1,10\n").encode(),
    "open quote": (HEADER + '1,"10,x,true,5\n').encode(),
    "no UTF-8": HEADER.encode() + b"1,10,caf\xe9,true,5\n",
    "header only": HEADER.encode(),
    "all bad": (HEADER + "1,10,yesterday,true,5\n").encode(),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_file_gets_the_same_sentence(fault: str, spark: EngineSettings, tmp_path: Path) -> None:
    (tmp_path / "users.csv").write_text("user_id\n1\n")
    (tmp_path / "videos.csv").write_text("video_id,channel_id,upload_time,duration_seconds\n10,5,,\n")
    (tmp_path / "impressions.csv").write_bytes(FAULTS[fault])
    said = []
    for engine in (EngineSettings(), spark):
        with pytest.raises(InputError) as caught:
            ingest(tmp_path, "own", tmp_path / "events", IngestionSettings(as_of=AS_OF), engine)
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert not (tmp_path / "events").exists()


def test_damaged_values_name_their_file(spark: EngineSettings, tmp_path: Path) -> None:
    pq.write_table(pa.table({"number": pa.array(range(2_000))}), tmp_path / "damaged.parquet")
    content = bytearray((tmp_path / "damaged.parquet").read_bytes())
    content[4:64] = b"\xff" * 60
    (tmp_path / "damaged.parquet").write_bytes(content)
    engine = connect(spark)
    said = r"Cannot read .*/damaged\.parquet: .*export it again"
    with pytest.raises(InputError, match=said), engine.running("the numbers"):
        engine.read_parquet([tmp_path / "damaged.parquet"]).number.sum().to_pyarrow()
    engine.disconnect()


def test_a_session_that_is_there_keeps_its_settings(spark: EngineSettings) -> None:
    from pyspark.sql import SparkSession

    session = SparkSession.getActiveSession()
    session.conf.set("spark.sql.session.timeZone", "Asia/Shanghai")
    connect(spark).disconnect()
    assert session.conf.get("spark.sql.session.timeZone") == "Asia/Shanghai"
    assert session.range(3).count() == 3


TEXTS = [
    *(
        "1",
        "+1",
        " -1 ",
        "1.0",
        "1.5",
        ".5",
        "-.5",
        "1.",
        "1e3",
        "1.5E3",
        "1e-1",
        "1e+3",
        "1_000",
        "1__0",
        "_1",
    ),
    *(
        "0x1F",
        "1d",
        "1f",
        "1L",
        "0x1p3",
        "1 2",
        "1,000",
        "00012",
        "1e400",
        "1e-400",
        "nan",
        "Infinity",
        "-inf",
    ),
    *(
        "9223372036854775807",
        "9223372036854775808",
        "9007199254740993.0",
        "123456789012345678.0",
        "\t1\n",
        "٣",
    ),
    *("true", "T", "tRuE ", "0", "FALSE", "yes", "", "   ", "\u00a01"),
    *("2026-01-05T10:00:00Z", "2026-01-05 10:00:00", "2026-01-05T10:00Z", "2026-1-5 1:2:3", "2026-01-05"),
    *("2026-01-05T10:00:00.123456789+0200", "2026-01-05T10:00:00-12:30", "2026-01-05 10:00:00 Europe/Paris"),
    *(
        "2026/01/05 10:00",
        "2026-01",
        "2026",
        "12:30",
        "T12:30",
        "20260105",
        "1767607200",
        "2026-02-30",
        "now",
    ),
    *("2026-01-05T10", "2026-01-05T25:00", "2026-01-05T10:00:60Z", "2026-01-05T10:00:00+2", "1960-01-05"),
    *("ΟΔΟΣ ÀÉ", "İstanbul", "ẞ ǅ Ἀ", "𐐀x 学习 ひらがな", "a  b\tc\u3000d|e", "ﬁ"),
]
REALS = [
    *(12.5, 1e7, 12345678.0, 1e15, 1e16, 123456789012345678.0, 1e20, 1.5e20, 1e22, -1e300, 86_400_000.0),
    *(0.1, 1e-3, 1e-4, 0.00012345, 1e-5, 1.5e-5, -1.5e-7, -0.0, 1 / 3, 1234567890123456.7, 2.0**63),
    *(float("inf"), float("-inf"), float("nan")),
]


def test_texts_are_read_alike(engines: tuple[Engine, Engine], tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "texts.parquet")

    def read(rows: ibis.Table) -> dict[str, ibis.Value]:
        kinds = ("int64", "float64", "bool", "string", "timestamp")
        parsed = {kind: parse(rows.text, kind) for kind in kinds}
        return parsed | {"tokens": search_tokens(rows.text), "id": text_ids(rows.text)}

    assert_alike(engines, tmp_path / "texts.parquet", read)


def test_values_are_written_alike(engines: tuple[Engine, Engine], tmp_path: Path) -> None:
    table = pa.table({"real": REALS})
    times = [datetime(2026, 1, 5, 10, 0, 0, 500 * row) for row in range(len(REALS))]
    for unit in ("ms", "us", "ns"):
        table = table.append_column(
            unit, pa.array(times, pa.timestamp("us")).cast(pa.timestamp(unit), safe=False)
        )
    table = table.append_column("zoned", pa.array(times, pa.timestamp("us", "Asia/Shanghai")))
    pq.write_table(table, tmp_path / "values.parquet")

    def read(rows: ibis.Table) -> dict[str, ibis.Value]:
        zoned = {
            f"{name}_text": rows[name].cast("timestamp('UTC', 6)").cast("string")
            for name in table.schema.names[1:]
        }
        return zoned | {
            "text": rows.real.cast("string"),
            "whole": parse(rows.real, "int64"),
            "finite": parse(rows.real, "float64"),
            "missing": rows.real.isnull(),
        }

    assert_alike(engines, tmp_path / "values.parquet", read)


def test_that_a_value_moves_to_another_column_changes_the_checksum(
    engines: tuple[Engine, Engine], tmp_path: Path
) -> None:
    columns = {"first": [1, None, 7, None], "second": [None, 1, None, 7], "group": ["a", "b", "c", "d"]}
    pq.write_table(pa.table(columns), tmp_path / "moved.parquet")
    for engine in engines:
        found = measure(engine.read_parquet([tmp_path / "moved.parquet"]), ("first", "second"), "group")
        assert len({day.checksum for day in found.values()}) == 4
        assert all(len(day.checksum) == 32 and day.checksum[8:16] != "0" * 8 for day in found.values())


def assert_alike(
    engines: tuple[Engine, Engine], file: Path, read: Callable[[ibis.Table], dict[str, ibis.Value]]
) -> None:
    """Compare what the engines make of each row of a file, by the file's first column."""
    made = []
    for engine in engines:
        rows = engine.read_parquet([file])
        key = rows.columns[0]
        batches = engine.batches(rows.select(key, **read(rows)), 1_000)
        made.append([pa.Table.from_batches([batch]).to_pylist() for batch in batches])
    expected, found = ({repr(row): None for rows in batches for row in rows} for batches in made)
    assert list(found) == list(expected)
