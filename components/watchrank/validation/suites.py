"""The suites: what the schema promises, as Great Expectations' rules.

A table has two suites. `columns` looks at the Parquet files' own types, one row a file, and `values`
at the table's rows. `days` looks at one row a day of the impressions. The description of a rule
reads "X must be Y" and serves the error, the page and Great Expectations' Data Docs alike.
"""

import sys
from collections.abc import Iterable
from dataclasses import replace

import great_expectations.expectations as gxe
from great_expectations import ExpectationSuite
from great_expectations.expectations.expectation import Expectation

from watchrank.config import ValidationSettings
from watchrank.events import DAILY, Manifest
from watchrank.schema import OPTIONAL_TABLES, SOURCE_TABLES, Column, Table

PARENTS = {
    "impressions": {"user_id": "users", "video_id": "videos"},
    "searches": {"user_id": "users"},
    "earlier_watches": {"user_id": "users", "video_id": "videos"},
}
"""The columns of a table that point into another one, whose key has the same name."""

OUTSIDE_DAY = "timestamp outside its day"
"""A derived column: the timestamps that lie on another day than their folder's, null elsewhere."""

ARROW_TYPES = {
    "int64": ["int64"],
    "float64": ["double"],
    "bool": ["bool"],
    "string": ["string", "large_string"],
    "timestamp": ["timestamp[us, tz=UTC]"],
}
"""The Arrow types in a Parquet file that stand for a dtype of the log tables."""


def unknown(column: str, parent: str) -> str:
    """Name the derived column that keeps the values of `column` that `parent` lacks, null elsewhere."""
    return f"{column} not in {parent}"


def present_tables(manifest: Manifest) -> list[Table]:
    """Return the tables with the columns that must be there, by what the source of the events had.

    Only optional columns and tables may be left out.
    """
    return [
        replace(
            table,
            columns=tuple(
                column
                for column in table.columns
                if column.required or f"{table.name}.{column.name}" not in manifest.absent
            ),
        )
        for table in SOURCE_TABLES
        if table not in OPTIONAL_TABLES or table.name in manifest.tables
    ]


def columns_suite(table: Table) -> ExpectationSuite:
    """Build the suite of a table's files: exactly the table's columns, each of its type."""
    exactly = gxe.ExpectTableColumnsToMatchSet(
        column_set=table.names,
        exact_match=True,
        description=f"the columns must be exactly {', '.join(table.names)}",
        meta={"column": ""},
    )
    return _suite(table.name, "columns", "files", [exactly, *(_type(column) for column in table.columns)])


def values_suite(table: Table) -> ExpectationSuite:
    """Build the suite of a table's rows: no nulls, ranges, references, days and the key.

    The key of a table with days holds the timestamp, and the suite makes sure that a timestamp lies
    on its folder's day. So equal keys lie on one day, and batches of whole days find all of them.
    """
    rules: list[Expectation] = [_filled(column) for column in table.columns if not column.nullable]
    rules += [_range(column) for column in table.columns if _bounds(column) != (None, None)]
    rules += [_known(column, parent) for column, parent in PARENTS.get(table.name, {}).items()]
    if is_daily(table):
        rules.append(
            gxe.ExpectColumnValuesToBeNull(
                column=OUTSIDE_DAY,
                description="timestamp must be on the day of its folder (UTC)",
                meta={"column": "timestamp"},
            )
        )
    return _suite(table.name, "values", "values", [*rules, _unique(table.key)])


def days_suite(settings: ValidationSettings) -> ExpectationSuite:
    """Build the suite of the days' volume, click rate, users and videos, one row a day.

    It is as strict with the first and the last day as with any other. Where they are partial (the log breaks
    off in the middle of a day, or was cut at the midnights of another time zone than UTC), cut them off or
    widen the bounds.
    """
    change = settings.max_volume_change
    rules = [
        _day("rows", settings.min_rows_a_day, None, "rows must be at least {low} a day"),
        _day(
            "volume_ratio",
            1 / change,
            change,
            "volume_ratio (the day's rows / the median day's) must be between {low} and {high}",
        ),
        _day(
            "click_rate",
            settings.min_click_rate,
            settings.max_click_rate,
            "click_rate must be between {low} and {high}",
        ),
        _day(
            "busiest_user_share",
            None,
            settings.max_user_share,
            "busiest_user_share (of the day's rows, those of one user) must be at most {high}",
        ),
        *(
            _day(
                f"new_{kind}_share",
                None,
                settings.max_new_share,
                f"new_{kind}_share (of the day's rows, those of {kind} that no day before has) must be "
                "at most {high}",
            )
            for kind in ("users", "videos")
        ),
        _day(
            "repeated_rise",
            None,
            settings.max_repeated_rise,
            "repeated_rise (share of the day's rows whose user and video were there before, on it or the day "
            "before, above the median day's) must be at most {high}",
        ),
        _day(
            "days_since_previous",
            None,
            1,
            "days_since_previous must be 1, that is no day missing from first to last",
        ),
    ]
    return _suite("days", "values", "days", rules)


def read_columns(table: Table) -> list[str]:
    """Return the columns that the suite of the values looks at, in the schema's order."""
    return [
        column.name
        for column in table.columns
        if not column.nullable or column.name in table.key or _bounds(column) != (None, None)
    ]


def is_daily(table: Table) -> bool:
    """Tell whether the table is stored in one folder a day."""
    return table.name in {daily.name for daily in DAILY}


def _suite(table: str, kind: str, unit: str, rules: Iterable[Expectation]) -> ExpectationSuite:
    name = table if table == "days" else f"{table}-{kind}"
    return ExpectationSuite(name=name, expectations=list(rules), meta={"table": table, "unit": unit})


def _type(column: Column) -> Expectation:
    return gxe.ExpectColumnValuesToBeInSet(
        column=column.name,
        value_set=ARROW_TYPES[column.dtype],
        description=f"{column.name} must be {_type_words(column)}",
        meta={"column": column.name},
    )


def _type_words(column: Column) -> str:
    return "timestamp[us, UTC]" if column.dtype == "timestamp" else column.dtype


def _filled(column: Column) -> Expectation:
    return gxe.ExpectColumnValuesToNotBeNull(
        column=column.name,
        description=f"{column.name} must be filled",
        meta={"column": column.name},
    )


def _bounds(column: Column) -> tuple[float | None, float | None]:
    """Return the least and greatest value; a float is finite, and NaN lies in no range."""
    if column.dtype != "float64":
        return column.minimum, column.maximum
    largest = sys.float_info.max
    low = -largest if column.minimum is None else column.minimum
    return low, largest if column.maximum is None else column.maximum


def _range(column: Column) -> Expectation:
    low, high = _bounds(column)
    return gxe.ExpectColumnValuesToBeBetween(
        column=column.name,
        min_value=low,
        max_value=high,
        description=f"{column.name} must be {_range_words(column)}",
        meta={"column": column.name},
    )


def _range_words(column: Column) -> str:
    if column.minimum is not None and column.maximum is not None:
        return f"between {column.minimum:g} and {column.maximum:g}"
    words = []
    if column.minimum is not None:
        words.append(f"at least {column.minimum:g}")
    if column.maximum is not None:
        words.append(f"at most {column.maximum:g}")
    if column.dtype == "float64":
        words.append("finite")
    return " and ".join(words)


def _known(column: str, parent: str) -> Expectation:
    return gxe.ExpectColumnValuesToBeNull(
        column=unknown(column, parent),
        description=f"{column} must be in {parent}",
        meta={"column": column},
    )


def _unique(key: tuple[str, ...]) -> Expectation:
    if len(key) == 1:
        return gxe.ExpectColumnValuesToBeUnique(
            column=key[0], description=f"{key[0]} must be unique", meta={"column": key[0]}
        )
    names = ", ".join(key)
    return gxe.ExpectCompoundColumnsToBeUnique(
        column_list=list(key), description=f"({names}) must be unique", meta={"column": names}
    )


def _day(column: str, low: float | None, high: float | None, words: str) -> Expectation:
    described = words.format(low=_number(low), high=_number(high))
    return gxe.ExpectColumnValuesToBeBetween(
        column=column, min_value=low, max_value=high, description=described, meta={"column": column}
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.6g}"
