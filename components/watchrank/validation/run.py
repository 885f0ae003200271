"""Run the suites over an events folder and stop the pipeline when one fails."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from watchrank.config import ValidationSettings
from watchrank.errors import ValidationError
from watchrank.events import manifest
from watchrank.schema import IMPRESSIONS, USERS, VIDEOS, Table
from watchrank.storage import atomic_path, reading
from watchrank.validation import frames, suites
from watchrank.validation.frames import Day, Part
from watchrank.validation.report import SuiteResult, ValidationReport, failure_message, write_report
from watchrank.validation.runner import Runner, unchecked

Parts = dict[str, list[Part]]


def validate(events: Path, output: Path, settings: ValidationSettings) -> ValidationReport:
    """Check an events folder against the suites of the schema.

    The files' columns come first; the values are checked only when every file has the right ones. The
    impressions and searches are read in batches of whole days, so memory is bounded by
    `settings.batch_rows`; tables without days are read whole.

    Args:
        events: the folder that ingestion wrote.
        output: gets `report.html` (one self-contained page), `report.json` and `data_docs/` (the site of
            Great Expectations), also when a suite fails.
        settings: the bounds that go beyond the schema.

    Returns:
        What was checked and observed.

    Raises:
        InputError: a file is missing or cannot be read; nothing is written.
        ValidationError: a suite failed; the text names the first faults.
    """
    started = time.perf_counter()
    with reading(events), atomic_path(output / "data_docs") as site:
        declared = manifest(events)
        tables = suites.present_tables(declared)
        parts = {table.name: frames.find_parts(events, table) for table in tables}
        runner = Runner(site)
        results, days = _run_suites(runner, tables, parts, settings)
        runner.build_site()
    report = ValidationReport(
        success=all(result.success for result in results),
        seconds=round(time.perf_counter() - started, 3),
        absent=tuple(sorted(declared.absent)),
        suites=tuple(results),
        days=tuple(_records(days)),
    )
    write_report(report, output)
    if not report.success:
        raise ValidationError(failure_message(report, output / "report.html"))
    return report


def _run_suites(
    runner: Runner, tables: list[Table], parts: Parts, settings: ValidationSettings
) -> tuple[list[SuiteResult], pd.DataFrame]:
    """Return the result of each suite, and the table of days (empty when no values were checked)."""
    results = [
        runner.run(suites.columns_suite(table), [("files", frames.files_frame(parts[table.name]))])
        for table in tables
    ]
    if not all(result.success for result in results):
        rest = [*(suites.values_suite(table) for table in tables), suites.days_suite(settings)]
        return results + [unchecked(suite) for suite in rest], pd.DataFrame()
    ids = {table.name: frames.read_ids(parts[table.name], *table.key) for table in (USERS, VIDEOS)}
    counts: list[Day] = []
    for table in tables:
        batches = _batches(table, parts[table.name], ids, settings.batch_rows, counts)
        results.append(runner.run(suites.values_suite(table), batches, table.key))
    days = frames.days_frame(counts)
    return [*results, runner.run(suites.days_suite(settings), [("days", days)])], days


def _batches(
    table: Table, parts: list[Part], ids: dict[str, pa.Array], batch_rows: int, counts: list[Day]
) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the rows of a table in batches, each with its name; add the impressions' `counts` of days."""
    known = frames.Known()
    for batch in frames.whole_days(parts, batch_rows):
        rows = [frames.read_rows(part, table, ids) for part in batch]
        if table.name == IMPRESSIONS.name:
            counts += [frames.count_day(*day, known) for day in zip(batch, rows, strict=True)]
        yield _batch_name(batch), frames.rows_frame(rows)


def _batch_name(batch: list[Part]) -> str:
    first, last = batch[0].day, batch[-1].day
    return "whole" if first is None else f"{first}_{last}"


def _records(days: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the days as plain values, None where there is none."""
    plain = days.astype(object).where(days.notna(), None).rename_axis("date").reset_index()
    return [{str(name): value for name, value in row.items()} for row in plain.to_dict("records")]
