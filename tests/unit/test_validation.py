"""Validation on events folders made by hand: 6 days of 10 impressions and, where added, 2 searches a day."""

import json
import shutil
import socket
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from watchrank.config import ValidationSettings
from watchrank.errors import InputError, ValidationError
from watchrank.events import Manifest, TableSummary, manifest
from watchrank.schema import SOURCE_TABLES, Column, Table
from watchrank.validation import validate
from watchrank.validation.frames import Known, Part, whole_days
from watchrank.validation.report import Check, SuiteResult, ValidationReport
from watchrank.validation.suites import columns_suite, days_suite, present_tables, values_suite

FIRST_DAY = date(2026, 1, 1)
USERS = [1, 2, 2**60 + 1]
VIDEOS = [10, 11, 12, 13, 14]
ABSENT = [
    "impressions.candidate_source",
    "impressions.followed",
    "impressions.liked",
    "impressions.long_view",
    "impressions.surface",
    "searches.clicked_video_id",
    "searches.query",
    "users.country",
    "users.device",
    "users.gender",
    "users.logged_in",
    "users.signup_time",
    "videos.category",
]
COLUMNS = "user_id, video_id, timestamp, clicked, watch_seconds, position"
SETTINGS = ValidationSettings(min_rows_a_day=4, max_volume_change=5, max_user_share=0.5)

ID = pa.int64()
TIME = pa.timestamp("us", "UTC")


@dataclass
class Log:
    """The tables of an events folder, those with days as one table a day."""

    users: pa.Table
    videos: pa.Table
    impressions: dict[str, pa.Table]
    searches: dict[str, pa.Table] = field(default_factory=dict)
    earlier_watches: pa.Table | None = None
    absent: list[str] = field(default_factory=lambda: list(ABSENT))

    def add_searches(self) -> None:
        self.searches = {_day(number): _searches(number) for number in range(6)}
        self.absent.remove("searches.query")

    @property
    def whole(self) -> dict[str, pa.Table]:
        tables = {"users": self.users, "videos": self.videos, "earlier_watches": self.earlier_watches}
        return {name: content for name, content in tables.items() if content is not None}

    def write(self, folder: Path) -> Path:
        for name, content in self.whole.items():
            _write(content, folder / f"{name}.parquet")
        for name, days in (("impressions", self.impressions), ("searches", self.searches)):
            for day, content in days.items():
                _write(content, folder / name / f"date={day}" / "part.parquet")
        (folder / "manifest.json").write_text(json.dumps(self._manifest()))
        return folder

    def _manifest(self) -> dict[str, Any]:
        tables: dict[str, Any] = {
            name: {"rows": len(content), "quarantined": {}, "days": {}}
            for name, content in self.whole.items()
        }
        for name, days in (("impressions", self.impressions), ("searches", self.searches)):
            rows = {day: {"rows": len(content), "checksum": ""} for day, content in days.items()}
            total = sum(len(content) for content in days.values())
            if days:
                tables[name] = {"rows": total, "quarantined": {}, "days": rows}
        return {"source": "own", "absent": self.absent, "tables": tables}


def _write(content: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(content, path)


def _day(number: int) -> str:
    return (FIRST_DAY + timedelta(days=number)).isoformat()


def _times(number: int, count: int) -> pa.Array:
    start = datetime.combine(FIRST_DAY + timedelta(days=number), datetime.min.time(), UTC)
    return pa.array([start + timedelta(seconds=second) for second in range(count)], TIME)


def _impressions(number: int, count: int = 10) -> pa.Table:
    """Rows 0, 5, 10, ... are clicked: a click rate of 20 %."""
    rows = range(count)
    return pa.table(
        {
            "user_id": pa.array([USERS[row % 3] for row in rows], ID),
            "video_id": pa.array([VIDEOS[row % 5] for row in rows], ID),
            "timestamp": _times(number, count),
            "clicked": pa.array([row % 5 == 0 for row in rows], pa.bool_()),
            "watch_seconds": pa.array([8.5 if row % 5 == 0 else 0 for row in rows], pa.float64()),
            "position": pa.array([None if row == 1 else row for row in rows], ID),
        }
    )


def _searches(number: int) -> pa.Table:
    return pa.table(
        {"user_id": pa.array([1, 2], ID), "timestamp": _times(number, 2), "query": ["cats", "猫"]}
    )


@pytest.fixture
def log() -> Log:
    return Log(
        users=pa.table(
            {
                "user_id": pa.array(USERS, ID),
                "age": pa.array([30, None, 130], pa.float64()),
                "language": ["en", None, "zh"],
            }
        ),
        videos=pa.table(
            {
                "video_id": pa.array(VIDEOS, ID),
                "channel_id": pa.array([1, 1, 2, 2, 3], ID),
                "upload_time": pa.array([None] * 5, TIME),
                "duration_seconds": pa.array([None, 0, 10, 20, 30], pa.float64()),
                "title": ["a", "b", "c", "d", "e"],
                "language": ["en"] * 5,
            }
        ),
        impressions={_day(number): _impressions(number) for number in range(6)},
    )


def _put(table: pa.Table, column: str, values: dict[int, Any]) -> pa.Table:
    """Return the table with other values in some rows of a column."""
    place = table.column_names.index(column)
    changed = [values.get(row, value) for row, value in enumerate(table[column].to_pylist())]
    return table.set_column(place, column, pa.array(changed, table.schema.field(column).type))


def _edit_day(column: str, values: dict[int, Any], number: int = 2) -> Callable[[Log], None]:
    def edit(log: Log) -> None:
        log.impressions[_day(number)] = _put(log.impressions[_day(number)], column, values)

    return edit


def _edit_days(change: Callable[[pa.Table], pa.Table], *numbers: int) -> Callable[[Log], None]:
    def edit(log: Log) -> None:
        for day in [_day(number) for number in numbers] or log.impressions:
            log.impressions[day] = change(log.impressions[day])

    return edit


def _edit_users(column: str, values: dict[int, Any]) -> Callable[[Log], None]:
    def edit(log: Log) -> None:
        log.users = _put(log.users, column, values)

    return edit


def _search_by_nobody(log: Log) -> None:
    log.add_searches()
    log.searches[_day(3)] = _put(log.searches[_day(3)], "user_id", {0: 98})


def _all(*edits: Callable[[Log], None]) -> Callable[[Log], None]:
    def edit(log: Log) -> None:
        for each in edits:
            each(log)

    return edit


def _cast(column: str, kind: pa.DataType) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        return table.set_column(table.column_names.index(column), column, table[column].cast(kind))

    return change


def _declare_absent(log: Log) -> None:
    log.absent.append("users.language")


def _repeat_video(log: Log) -> None:
    log.videos = pa.concat_tables([log.videos, log.videos.slice(2, 1)])


def _drop_day(log: Log) -> None:
    del log.impressions[_day(2)]
    del log.impressions[_day(3)]


def _grow_day(log: Log) -> None:
    log.impressions[_day(5)] = _impressions(5, count=60)


FAULTS: dict[str, tuple[Callable[[Log], None], list[str]]] = {
    "missing column": (
        _edit_days(lambda table: table.drop_columns(["watch_seconds"])),
        [f"impressions: the columns must be exactly {COLUMNS}, but watch_seconds is missing."],
    ),
    "missing column in one file": (
        _edit_days(lambda table: table.drop_columns(["watch_seconds"]), 2),
        [
            "impressions: watch_seconds must be float64, but 1 of 6 files is not "
            "(for example missing in impressions/date=2026-01-03/part.parquet)."
        ],
    ),
    "extra column": (
        _edit_days(lambda table: table.append_column("colour", table["user_id"]), 4),
        [f"impressions: the columns must be exactly {COLUMNS}, but colour is unexpected."],
    ),
    "column declared absent": (
        _declare_absent,
        ["users: the columns must be exactly user_id, age, but language is unexpected."],
    ),
    "text for a number": (
        _edit_days(_cast("watch_seconds", pa.string()), 0, 1),
        [
            "impressions: watch_seconds must be float64, but 2 of 6 files are not "
            "(for example string in impressions/date=2026-01-01/part.parquet)."
        ],
    ),
    "null key": (
        _edit_day("user_id", {3: None}),
        [
            "impressions: user_id must be filled, but 1 of 60 values is not "
            "(for example null at video_id 13, timestamp 2026-01-03 00:00:03+00:00)."
        ],
    ),
    "below the minimum, not a number, infinite": (
        _edit_day("watch_seconds", {2: -4.0, 3: -0.5, 4: float("nan"), 5: float("inf")}),
        [
            "impressions: watch_seconds must be at least 0 and finite, but 4 of 60 values are not (for "
            "example -4 at user_id 1152921504606846977, video_id 12, timestamp 2026-01-03 00:00:02+00:00)."
        ],
    ),
    "out of range, in two tables": (
        _all(_edit_day("position", {0: -1}), _edit_users("age", {0: 131})),
        [
            "impressions: position must be at least 0, but 1 of 60 values is not "
            "(for example -1 at user_id 1, video_id 10, timestamp 2026-01-03 00:00:00+00:00).",
            "users: age must be between 0 and 130, but 1 of 3 values is not (for example 131 at user_id 1).",
        ],
    ),
    "duplicate keys": (
        _all(
            _edit_days(lambda table: pa.concat_tables([table, table.slice(5, 1)]), 2),
            _repeat_video,
        ),
        [
            "impressions: (user_id, video_id, timestamp) must be unique, but 2 of 61 values are not "
            "(for example user_id 1152921504606846977, video_id 10, timestamp 2026-01-03 00:00:05+00:00).",
            "videos: video_id must be unique, but 2 of 6 values are not (for example 12).",
        ],
    ),
    "unknown user": (
        _all(_edit_day("user_id", {7: 99}), _search_by_nobody),
        [
            "impressions: user_id must be in users, but 1 of 60 values is not "
            "(for example 99 at video_id 12, timestamp 2026-01-03 00:00:07+00:00).",
            "searches: user_id must be in users, but 1 of 12 values is not "
            "(for example 98 at timestamp 2026-01-04 00:00:00+00:00, query cats).",
        ],
    ),
    "unknown video": (
        _edit_day("video_id", {0: 2**60, 1: 2**60 + 2}),
        [
            "impressions: video_id must be in videos, but 2 of 60 values are not "
            "(for example 1152921504606846976 at user_id 1, timestamp 2026-01-03 00:00:00+00:00)."
        ],
    ),
    "click rate too low, too high": (
        _all(
            _edit_day("clicked", {0: False, 5: False}),
            _edit_day("clicked", dict.fromkeys(range(10), True), number=4),
        ),
        [
            "days: click_rate must be between 0.001 and 0.95, but 2 of 6 days are not "
            "(for example 0 on 2026-01-03)."
        ],
    ),
    "the day before and the day after": (
        _edit_day(
            "timestamp",
            {0: datetime(2026, 1, 2, 23, 59, 59, 999_999, tzinfo=UTC), 9: datetime(2026, 1, 4, tzinfo=UTC)},
        ),
        [
            "impressions: timestamp must be on the day of its folder (UTC), but 2 of 60 values are not "
            "(for example 2026-01-02 23:59:59.999999+00:00 at user_id 1, video_id 10)."
        ],
    ),
    "too few rows in a day": (
        _edit_days(lambda table: table.slice(0, 3), 5),
        ["days: rows must be at least 4 a day, but 1 of 6 days is not (for example 3 on 2026-01-06)."],
    ),
    "an empty day": (
        _edit_days(lambda table: table.slice(0, 0), 5),
        [
            "days: rows must be at least 4 a day, but 1 of 6 days is not (for example 0 on 2026-01-06).",
            "days: volume_ratio (the day's rows / the median day's) must be between 0.2 and 5, "
            "but 1 of 6 days is not (for example 0 on 2026-01-06).",
        ],
    ),
    "missing days": (
        _drop_day,
        [
            "days: days_since_previous must be 1, that is no day missing from first to last, "
            "but 1 of 4 days is not (for example 3 on 2026-01-05)."
        ],
    ),
    "volume jump": (
        _grow_day,
        [
            "days: volume_ratio (the day's rows / the median day's) must be between 0.2 and 5, "
            "but 1 of 6 days is not (for example 6 on 2026-01-06)."
        ],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_and_nothing_else_is_named(fault: str, log: Log, tmp_path: Path) -> None:
    plant, sentences = FAULTS[fault]
    plant(log)
    output = tmp_path / "validation"

    with pytest.raises(ValidationError) as error:
        validate(log.write(tmp_path / "events"), output, SETTINGS)

    remedy = f" See {output / 'report.html'}. Fix the log or the bound in `validation`."
    assert str(error.value) == " ".join(sentences) + remedy
    assert _failed(output) == sentences
    page = (output / "report.html").read_text(encoding="utf-8")
    assert sentences[0].replace("'", "&#39;") in page
    assert (output / "data_docs" / "index.html").is_file()


def _failed(output: Path) -> list[str]:
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    assert report["success"] is False
    return [
        f"{suite['table']}: {check['rule']}, but {check['observed']}."
        for suite in report["suites"]
        for check in suite["checks"]
        if check["status"] == "failed"
    ]


def test_a_good_log_passes_and_writes_nothing_outside_the_output(
    log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    calls: list[Any] = []
    monkeypatch.chdir(empty)
    monkeypatch.setenv("HOME", str(empty))
    monkeypatch.setattr(tempfile, "tempdir", str(empty))
    monkeypatch.setattr(socket.socket, "connect", lambda *call: calls.append(call))
    output = tmp_path / "validation"

    report = validate(log.write(tmp_path / "events"), output, SETTINGS)

    assert report.success
    assert {suite.table for suite in report.suites} == {"impressions", "videos", "users", "days"}
    assert {suite.status for suite in report.suites} == {"passed"}
    assert sorted(path.name for path in output.iterdir()) == ["data_docs", "report.html", "report.json"]
    assert list(empty.iterdir()) == []
    assert calls == []
    assert capfd.readouterr() == ("", "")


def test_the_report_says_what_was_looked_at(log: Log, tmp_path: Path) -> None:
    log.impressions[_day(1)] = _impressions(1, count=15)
    log.add_searches()

    report = validate(log.write(tmp_path / "events"), tmp_path / "validation", SETTINGS)

    counts = {
        (suite.name, suite.unit): max(check.checked for check in suite.checks) for suite in report.suites
    }
    assert counts == {
        ("impressions-columns", "files"): 6,
        ("videos-columns", "files"): 1,
        ("users-columns", "files"): 1,
        ("searches-columns", "files"): 6,
        ("impressions-values", "values"): 65,
        ("videos-values", "values"): 5,
        ("users-values", "values"): 3,
        ("searches-values", "values"): 12,
        ("days", "days"): 6,
    }
    assert report.absent == tuple(name for name in ABSENT if name != "searches.query")
    assert report.days[1] == {
        "date": "2026-01-02",
        "rows": 15,
        "volume_ratio": 1.5,
        "click_rate": 0.2,
        "busiest_user_share": pytest.approx(1 / 3),
        "new_users_share": None,
        "new_videos_share": None,
        "repeated_share": pytest.approx(2 / 3),
        "repeated_rise": pytest.approx(2 / 3 - 1),
        "unknown_users": 0,
        "unknown_videos": 0,
        "days_since_previous": 1,
    }
    assert report.days[0]["days_since_previous"] is None
    written = json.loads((tmp_path / "validation" / "report.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(asdict(report)))


def test_values_are_not_checked_when_a_file_lacks_its_columns(log: Log, tmp_path: Path) -> None:
    log.users = log.users.drop_columns(["age"])
    _edit_day("watch_seconds", {0: -1})(log)

    with pytest.raises(ValidationError, match=r"^users: .*, but age is missing\. See "):
        validate(log.write(tmp_path / "events"), tmp_path / "validation", SETTINGS)

    report = json.loads((tmp_path / "validation" / "report.json").read_text(encoding="utf-8"))
    statuses = {
        suite["name"]: {check["status"] for check in suite["checks"]}
        for suite in report["suites"]
        if not suite["name"].endswith("-columns")
    }
    assert statuses == {
        "impressions-values": {"not checked"},
        "videos-values": {"not checked"},
        "users-values": {"not checked"},
        "days": {"not checked"},
    }
    assert report["days"] == []


def _plant_many(log: Log) -> None:
    """Plant faults on several days, with equal keys on one day."""
    _edit_day("watch_seconds", {1: -1.0, 2: -2.0}, number=0)(log)
    _edit_day("watch_seconds", {1: -3.0, 2: -4.0}, number=4)(log)
    _edit_day("user_id", {7: 99}, number=1)(log)
    _edit_day("video_id", {7: 98}, number=3)(log)
    _edit_day("clicked", {0: False, 5: False}, number=3)(log)
    _edit_days(lambda table: pa.concat_tables([table, table.slice(9, 1)]), 5)(log)


def test_batches_find_what_one_batch_finds(log: Log, tmp_path: Path) -> None:
    """Equal keys are equal in their timestamp, which lies on its folder's day: no batch splits them."""
    _plant_many(log)
    events = log.write(tmp_path / "events")
    for name, rows in (("whole", 1_000), ("days", 20)):
        with pytest.raises(ValidationError):
            validate(events, tmp_path / name, SETTINGS.model_copy(update={"batch_rows": rows}))

    whole, days = (
        json.loads((tmp_path / name / "report.json").read_text(encoding="utf-8"))
        for name in ("whole", "days")
    )
    assert _without_time(whole) == _without_time(days)
    assert len(_failed(tmp_path / "days")) == 5
    assert (_runs(tmp_path / "whole"), _runs(tmp_path / "days")) == (1, 4)
    unknown = {day["date"]: (day["unknown_users"], day["unknown_videos"]) for day in whole["days"]}
    assert (unknown["2026-01-02"], unknown["2026-01-04"], unknown["2026-01-05"]) == ((1, 0), (0, 1), (0, 0))


def _without_time(report: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in report.items() if key != "seconds"}


def _runs(output: Path) -> int:
    return len(list((output / "data_docs" / "validations" / "impressions-values").rglob("*.html")))


def test_batches_are_whole_days_within_the_bound() -> None:
    parts = [
        Part(path=Path(), name=str(day), day=date(2026, 1, day), rows=rows, types={})
        for day, rows in enumerate([3, 3, 3, 7, 1], start=1)
    ]

    batches = [[part.name for part in batch] for batch in whole_days(parts, 6)]

    assert batches == [["1", "2"], ["3"], ["4"], ["5"]]


def test_only_the_first_faults_are_told(log: Log, tmp_path: Path) -> None:
    _plant_many(log)
    _edit_users("age", {0: -1})(log)
    _repeat_video(log)

    with pytest.raises(ValidationError) as error:
        validate(log.write(tmp_path / "events"), tmp_path / "validation", SETTINGS)

    sentences = _failed(tmp_path / "validation")
    assert len(sentences) == 7
    assert str(error.value).startswith(" ".join(sentences[:5]) + " And 2 more. See ")


def test_a_rule_that_could_not_be_checked_is_told() -> None:
    check = Check(
        column="age",
        rule="age must be filled",
        status="not checked",
        checked=0,
        failing=0,
        observed="it broke",
        examples=(),
    )
    suite = SuiteResult(name="users-values", table="users", unit="values", success=False, checks=(check,))
    report = ValidationReport(success=False, seconds=0, absent=(), suites=(suite,), days=())

    assert report.faults() == ["users: age must be filled, but it broke."]


def _rules(suite: Any) -> list[tuple[Any, ...]]:
    """Return each rule's type and what it asks for."""
    asked = ("column", "column_set", "column_list", "value_set", "min_value", "max_value")
    return [
        (
            type(rule).__name__,
            *(getattr(rule, name) for name in asked if getattr(rule, name, None) is not None),
        )
        for rule in suite.expectations
    ]


def test_the_suites_say_what_the_schema_says() -> None:
    table = Table(
        name="impressions",
        key=("user_id", "timestamp"),
        columns=(
            Column(name="user_id", dtype="int64", description="", minimum=1),
            Column(name="timestamp", dtype="timestamp", description=""),
            Column(name="share", dtype="float64", description="", nullable=True, maximum=9),
            Column(name="title", dtype="string", description="", required=False, nullable=True),
        ),
    )

    assert _rules(columns_suite(table)) == [
        ("ExpectTableColumnsToMatchSet", ["user_id", "timestamp", "share", "title"]),
        ("ExpectColumnValuesToBeInSet", "user_id", ["int64"]),
        ("ExpectColumnValuesToBeInSet", "timestamp", ["timestamp[us, tz=UTC]"]),
        ("ExpectColumnValuesToBeInSet", "share", ["double"]),
        ("ExpectColumnValuesToBeInSet", "title", ["string", "large_string"]),
    ]
    assert _rules(values_suite(table)) == [
        ("ExpectColumnValuesToNotBeNull", "user_id"),
        ("ExpectColumnValuesToNotBeNull", "timestamp"),
        ("ExpectColumnValuesToBeBetween", "user_id", 1),
        ("ExpectColumnValuesToBeBetween", "share", -1.7976931348623157e308, 9),
        ("ExpectColumnValuesToBeNull", "user_id not in users"),
        ("ExpectColumnValuesToBeNull", "video_id not in videos"),
        ("ExpectColumnValuesToBeNull", "timestamp outside its day"),
        ("ExpectCompoundColumnsToBeUnique", ["user_id", "timestamp"]),
    ]
    assert columns_suite(table).expectations[0].exact_match


@pytest.mark.parametrize("table", SOURCE_TABLES, ids=lambda table: table.name)
def test_every_rule_of_the_schema_is_in_the_suite(table: Table) -> None:
    rules = {
        (type(rule).__name__, getattr(rule, "column", None)): rule
        for rule in values_suite(table).expectations
    }

    filled = {column for kind, column in rules if kind == "ExpectColumnValuesToNotBeNull"}
    assert filled == {column.name for column in table.columns if not column.nullable}
    bounded = [column for column in table.columns if column.minimum is not None or column.maximum is not None]
    assert bounded
    for column in bounded:
        rule = rules["ExpectColumnValuesToBeBetween", column.name]
        assert rule.min_value == column.minimum
        assert column.maximum is None or rule.max_value == column.maximum
    assert columns_suite(table).expectations[0].column_set == table.names


def test_the_bounds_of_a_day_are_the_settings() -> None:
    settings = ValidationSettings(
        min_rows_a_day=7,
        max_volume_change=4,
        min_click_rate=0.1,
        max_click_rate=0.3,
        max_user_share=0.4,
        max_new_share=0.8,
        max_repeated_rise=0.25,
    )

    assert _rules(days_suite(settings)) == [
        ("ExpectColumnValuesToBeBetween", "rows", 7),
        ("ExpectColumnValuesToBeBetween", "volume_ratio", 0.25, 4),
        ("ExpectColumnValuesToBeBetween", "click_rate", 0.1, 0.3),
        ("ExpectColumnValuesToBeBetween", "busiest_user_share", 0.4),
        ("ExpectColumnValuesToBeBetween", "new_users_share", 0.8),
        ("ExpectColumnValuesToBeBetween", "new_videos_share", 0.8),
        ("ExpectColumnValuesToBeBetween", "repeated_rise", 0.25),
        ("ExpectColumnValuesToBeBetween", "days_since_previous", 1),
    ]


def test_a_row_is_repeated_when_its_user_and_video_were_there_on_the_day_or_the_one_before() -> None:
    def shown(*pairs: tuple[int | None, int]) -> pa.Table:
        users, videos = zip(*pairs, strict=True)
        return pa.table({"user_id": pa.array(users, ID), "video_id": pa.array(videos, ID)})

    known = Known()
    assert known.count_repeated(shown((1, 5), (1, 6), (2, 5), (1, 5), (None, 5), (None, 5))) == 1
    assert known.count_repeated(shown((1, 5), (1, 5), (2, 6))) == 2
    assert known.count_repeated(shown((2, 5), (2, 6))) == 1


def test_only_optional_columns_may_be_absent() -> None:
    absent = ("users.age", "videos.video_id", "videos.channel_id", "searches.clicked_video_id")
    searches = {"searches": TableSummary(rows=0, quarantined={})}

    present = present_tables(Manifest(source="own", absent=absent, tables=searches))

    names = {table.name: table.names for table in present}
    assert names.keys() == {"impressions", "videos", "users", "searches"}
    assert "age" not in names["users"]
    assert names["videos"][:2] == ["video_id", "upload_time"]
    assert names["searches"] == ["user_id", "timestamp", "query"]


def test_a_source_without_channels_times_and_durations_is_as_good(log: Log, tmp_path: Path) -> None:
    log.videos = log.videos.drop_columns(["channel_id", "upload_time", "duration_seconds"])
    log.absent += ["videos.channel_id", "videos.upload_time", "videos.duration_seconds"]

    assert validate(log.write(tmp_path / "events"), tmp_path / "validation", SETTINGS).success


def test_earlier_watches_are_checked_where_there_are_any(log: Log, tmp_path: Path) -> None:
    users, videos = pa.array([1, 1, 1, 99], ID), pa.array([10, 98, 10, 10], ID)
    times, places = pa.array([datetime(2025, 12, 31, tzinfo=UTC)] * 4, TIME), pa.array([0, 1, 1, -1], ID)
    log.earlier_watches = pa.table(
        {"user_id": users, "video_id": videos, "timestamp": times, "place": places}
    )

    with pytest.raises(ValidationError):
        validate(log.write(tmp_path / "events"), tmp_path / "validation", SETTINGS)

    assert [sentence.partition(", but")[0] for sentence in _failed(tmp_path / "validation")] == [
        "earlier_watches: place must be at least 0",
        "earlier_watches: user_id must be in users",
        "earlier_watches: video_id must be in videos",
        "earlier_watches: (user_id, place) must be unique",
    ]


class _Outside(HTMLParser):
    """Collects what a page would load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        loads = [
            name for name, _ in attrs if name in ("src", "href", "srcset", "data") or name.startswith("on")
        ]
        if tag in ("script", "link", "iframe", "img", "object") or loads:
            self.found.append(tag)


def test_the_page_stands_alone_and_escapes_the_log(log: Log, tmp_path: Path) -> None:
    log.add_searches()
    evil = "<script>alert(1)</script>"
    log.searches[_day(3)] = pa.table(
        {
            "user_id": pa.array([1, 1], ID),
            "timestamp": pa.array([_times(3, 1)[0]] * 2, TIME),
            "query": [evil] * 2,
        }
    )

    with pytest.raises(ValidationError, match="query <script>"):
        validate(log.write(tmp_path / "events"), tmp_path / "validation", SETTINGS)

    page = (tmp_path / "validation" / "report.html").read_text(encoding="utf-8")
    outside = _Outside()
    outside.feed(page)
    assert outside.found == []
    assert "url(" not in page
    assert "@import" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    for rule in columns_suite(present_tables(manifest(tmp_path / "events"))[0]).expectations:
        assert rule.description in page


def _claim_searches(events: Path) -> None:
    claimed = json.loads((events / "manifest.json").read_text())
    claimed["tables"]["searches"] = {"rows": 0, "quarantined": {}}
    (events / "manifest.json").write_text(json.dumps(claimed))


def _cut(events: Path) -> None:
    path = events / "impressions" / f"date={_day(3)}" / "part.parquet"
    path.write_bytes(path.read_bytes()[:-20])


def _scramble(events: Path) -> None:
    path = events / "videos.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:4] + bytes(200) + content[204:])


BAD_FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no manifest": (lambda events: (events / "manifest.json").unlink(), r"no .*manifest\.json; run"),
    "no users": (
        lambda events: (events / "users.parquet").unlink(),
        r"Cannot read .*users\.parquet \(.*\); run",
    ),
    "no searches, though declared": (_claim_searches, r"have no searches; run `watchrank ingest`"),
    "a truncated file": (_cut, r"Cannot read .*impressions/date=2026-01-04/part\.parquet \(.*\); run"),
    "a file with broken rows": (_scramble, r"Cannot read .*videos\.parquet \(.*\); run"),
    "no folder": (shutil.rmtree, r"no .*manifest\.json; run"),
}


@pytest.mark.parametrize("fault", BAD_FOLDERS)
def test_an_unreadable_folder_is_one_sentence_and_leaves_the_last_report(
    fault: str, log: Log, tmp_path: Path
) -> None:
    damage, sentence = BAD_FOLDERS[fault]
    events, output = log.write(tmp_path / "events"), tmp_path / "validation"
    (output / "data_docs").mkdir(parents=True)
    for name in ("report.html", "report.json", "data_docs/index.html"):
        (output / name).write_text("the last one")
    damage(events)

    with pytest.raises(InputError, match=sentence) as error:
        validate(events, output, SETTINGS)

    assert "\n" not in str(error.value)
    kept = {
        path.relative_to(output).as_posix(): path.read_text() for path in output.rglob("*") if path.is_file()
    }
    assert kept == dict.fromkeys(("report.html", "report.json", "data_docs/index.html"), "the last one")


def test_a_new_report_replaces_the_last_one(log: Log, tmp_path: Path) -> None:
    output = tmp_path / "validation"
    with pytest.raises(ValidationError):
        validate(log.write(tmp_path / "events"), output, ValidationSettings(min_rows_a_day=100))

    report = validate(tmp_path / "events", output, SETTINGS)

    assert report.success
    assert json.loads((output / "report.json").read_text(encoding="utf-8"))["success"] is True
    assert "must be at least 100" not in (output / "report.html").read_text(encoding="utf-8")
    assert _runs(output) == 1
