"""A day's log that goes wrong over night: what must not go on is stopped with its reason."""

import re
import shutil
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from watchrank.config import Config, SimulationSettings, SplitSettings
from watchrank.errors import InputError, ValidationError
from watchrank.events import days
from watchrank.ingestion import ingest
from watchrank.retraining import plan
from watchrank.simulation import simulate
from watchrank.validation import validate

START, DAYS = datetime(2026, 1, 1, tzinfo=UTC), 16
NIGHT = 15
"""The day that goes wrong, from 0: the last one."""

DEFAULTS = Config()


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A log of 16 days and about 24,000 impressions."""
    folder = tmp_path_factory.mktemp("night")
    sizes = {"impressions": 24_000, "users": 300, "videos": 400, "channels": 40, "days": DAYS}
    simulate(folder / "log", folder / "truth", SimulationSettings(start=START.date(), **sizes))
    return folder / "log"


@pytest.fixture(scope="module")
def good_events(good, tmp_path_factory):
    return bring_in(good, tmp_path_factory.mktemp("good") / "events")


def bring_in(log, events):
    """Ingest and validate a log with the default settings."""
    ingest(log, "own", events, DEFAULTS.ingestion, DEFAULTS.engine)
    validate(events, events.parent / "validation", DEFAULTS.validation)
    return events


def spoil(good, target, change, table="impressions"):
    """Copy the log with a table changed: `change` gets the rows and which are of the night."""
    log = shutil.copytree(good, target)
    for file in [log / f"{table}.parquet", *(log / table).glob("*.parquet")]:
        if file.exists():
            rows = pq.read_table(file)
            pq.write_table(change(rows, night_of(rows) if "timestamp" in rows.column_names else None), file)
    return log


def night_of(rows, day=NIGHT):
    start = START + timedelta(days=day)
    return pc.and_(
        pc.greater_equal(rows["timestamp"], start), pc.less(rows["timestamp"], start + timedelta(days=1))
    )


def put(rows, column, values):
    return rows.set_column(rows.column_names.index(column), column, values)


def shifted(**time):
    def change(rows, night):
        moved = pc.add(rows["timestamp"], pa.scalar(timedelta(**time)))
        return put(rows, "timestamp", pc.if_else(night, moved, rows["timestamp"]))

    return change


def clicks(clicked, day=NIGHT):
    def change(rows, _):
        night = night_of(rows, day)
        rows = put(rows, "clicked", pc.if_else(night, clicked, rows["clicked"]))
        return put(rows, "watch_seconds", pc.if_else(night, 5.0 * clicked, rows["watch_seconds"]))

    return change


def hashed(column):
    """Make the ids of the night other ones; a table without days gets them beside its own."""

    def change(rows, night):
        other = pc.add(pc.multiply(rows[column], 7_919), 10**9)
        if night is None:
            return pa.concat_tables([rows, put(rows, column, other)])
        return put(rows, column, pc.if_else(night, other, rows[column]))

    return change


def as_text(rows, night):
    text = rows["user_id"].cast(pa.string())
    return put(rows, "user_id", pc.if_else(night, pc.binary_join_element_wise("u", text, "-"), text))


def without(day):
    return lambda rows, _: rows.filter(pc.invert(night_of(rows, day)))


def doubled(rows, night):
    return pa.concat_tables([rows, rows.filter(night)])


def again(**time):
    """Add the night's rows once more, with other times."""

    def change(rows, night):
        more = rows.filter(night)
        return pa.concat_tables(
            [rows, put(more, "timestamp", pc.add(more["timestamp"], pa.scalar(timedelta(**time))))]
        )

    return change


def of_one_user(rows, night):
    """A tenth as many rows again as the night has, all of one user."""
    user = rows["user_id"][0]
    return put(
        rows, "user_id", pc.if_else(pc.and_(night, pc.less(rows["position"], 3)), user, rows["user_id"])
    )


STOPPED = {
    "a day is missing": (without(12), ValidationError, r"no day missing .* 1 of 15 days is not .*2026-01-14"),
    "a day has hardly any rows": (
        lambda rows, night: rows.filter(pc.or_(pc.invert(night), pc.less(rows["timestamp"], late(hours=1)))),
        ValidationError,
        r"volume_ratio .* on 2026-01-16",
    ),
    "nobody clicks": (clicks(False), ValidationError, r"click_rate .*\(for example 0 on 2026-01-16\)"),
    "everybody clicks": (clicks(True, 3), ValidationError, r"click_rate .*\(for example 1 on 2026-01-04\)"),
    "the clock is a day ahead": (shifted(days=1), ValidationError, r"no day missing .*2 on 2026-01-17"),
    "the clock is a year ahead": (
        shifted(days=365),
        InputError,
        r"^On 2027-01-16 ([\d,]+) of \1 rows .*: \1 time in the future; correct",
    ),
    "ids become strings": (
        as_text,
        InputError,
        r"On 2026-01-16 ([\d,]+) of \1 rows .*: \1 unparsable user_id; correct",
    ),
    "users are hashed anew": (
        hashed("user_id"),
        InputError,
        r"On 2026-01-16 ([\d,]+) of \1 .* unknown user;",
    ),
    "videos are hashed anew": (hashed("video_id"), InputError, r"On 2026-01-16 .* unknown video; correct"),
    "a day comes again, hours later": (again(hours=5), ValidationError, r"repeated_rise .* on 2026-01-16"),
    "a day comes again as the next one": (
        again(days=1),
        ValidationError,
        r"repeated_rise .*\(for example 0\.8\d+ on 2026-01-17\)",
    ),
    "one user has a third of a day": (of_one_user, ValidationError, r"busiest_user_share .* on 2026-01-16"),
}


def late(**time):
    return START + timedelta(days=NIGHT, **time)


@pytest.mark.parametrize("what", STOPPED)
def test_it_is_stopped_with_its_reason(good, tmp_path, monkeypatch, what):
    change, kind, reason = STOPPED[what]
    settings = DEFAULTS.ingestion.model_copy(update={"as_of": START + timedelta(days=40)})
    monkeypatch.setattr(f"{__name__}.DEFAULTS", DEFAULTS.model_copy(update={"ingestion": settings}))
    with pytest.raises(kind) as stopped:
        bring_in(spoil(good, tmp_path / "log", change), tmp_path / "events")
    assert re.search(reason, str(stopped.value)), stopped.value
    assert (tmp_path / "events").exists() == (kind is ValidationError)


@pytest.mark.parametrize(("table", "column"), [("users", "user_id"), ("videos", "video_id")])
def test_ids_made_anew_in_all_tables_are_stopped(good, tmp_path, table, column):
    log = spoil(good, tmp_path / "log", hashed(column))
    log = spoil(log, tmp_path / "both", hashed(column), table)
    if column == "user_id":
        log = spoil(log, tmp_path / "all", hashed(column), "searches")
    with pytest.raises(ValidationError, match=rf"new_{table}_share .*\(for example 1 on 2026-01-16\)"):
        bring_in(log, tmp_path / "events")


def test_a_day_that_is_not_there_yet_stops_the_run_of_its_night(good_events):
    with pytest.raises(InputError, match=r"reach up to 2026-01-16, .* up to 2026-01-17; bring in the log"):
        plan(good_events, "2026-01-17", SplitSettings(), None)


def test_a_day_that_comes_late_ends_as_if_it_had_come_in_time(good, good_events, tmp_path, content):
    early = spoil(
        good,
        tmp_path / "log",
        lambda rows, night: rows.filter(pc.less(rows["timestamp"], late(hours=17))),
    )
    events = bring_in(early, tmp_path / "events")
    assert content(events) != content(good_events)
    assert content(bring_in(good, events)) == content(good_events)


def test_a_day_that_comes_twice_counts_once(good, good_events, tmp_path, content):
    log = spoil(good, tmp_path / "log", doubled)
    with pytest.raises(InputError, match=r"\(5\.\d%\) are bad and at most 5\.0% may be, .* duplicate; an ex"):
        bring_in(log, tmp_path / "events")
    ample = DEFAULTS.ingestion.model_copy(update={"max_quarantine_share": 0.1})
    report = ingest(log, "own", tmp_path / "events", ample, DEFAULTS.engine)
    assert set(report.tables["impressions"].quarantined) == {"duplicate"}
    assert content(tmp_path / "events") == content(good_events)


def test_a_new_surface_passes_and_is_kept(good, tmp_path):
    def renamed(rows, night):
        return put(rows, "surface", pc.if_else(night, "television", rows["surface"]))

    events = bring_in(spoil(good, tmp_path / "log", renamed), tmp_path / "events")
    files = sorted((events / "impressions").glob("*/part.parquet"))
    surfaces = [set(pq.ParquetFile(file).read(["surface"])["surface"].to_pylist()) for file in files]
    assert surfaces[-1] == {"television"}
    assert "television" not in set.union(*surfaces[:-1])


def test_a_robot_is_set_apart_on_its_day_alone(good, good_events, tmp_path, content):
    """100,000 impressions of a user who has others, too: those of other days and users stay."""

    def robot(rows, _):
        first = rows.filter(night_of(rows, 5)).slice(0, 1)
        many = first.take(pa.array(np.zeros(100_000, dtype=int)))
        times = pc.add(many["timestamp"], pa.array(np.arange(100_000) * 100, pa.duration("us")))
        return pa.concat_tables([rows, put(many, "timestamp", times)])

    log = spoil(good, tmp_path / "log", robot)
    with pytest.raises(InputError, match=r"too many events of the user in a day"):
        bring_in(log, tmp_path / "events")
    ample = {"max_quarantine_share": 1, "max_quarantine_share_a_day": 1}
    ingest(log, "own", tmp_path / "events", DEFAULTS.ingestion.model_copy(update=ample), DEFAULTS.engine)
    found, before = content(tmp_path / "events"), content(good_events)
    user = pq.read_table(next((log / "impressions").glob("*")))
    user = user.filter(night_of(user, 5))["user_id"][0].as_py()
    day = days(good_events)[5].isoformat()
    for name, rows in before.items():
        assert found[name] == [row for row in rows if not (day in name and row["user_id"] == user)], name


@pytest.fixture(scope="module")
def content():
    """Return a function that reads the days of an events folder."""

    def read(events: Path):
        files = sorted((events / "impressions").glob("*/part.parquet"))
        return {file.parent.name: pq.ParquetFile(file).read().to_pylist() for file in files}

    return read


def test_the_log_is_as_told(good_events):
    assert days(good_events) == [date(2026, 1, 1) + timedelta(days=day) for day in range(DAYS)]
