"""The interface of a source: which files hold a table, and how their columns become the schema's.

A new source is one small file with such a declaration, and its line in `SOURCES` (job.py).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import ibis.expr.types as ir


@dataclass(frozen=True, kw_only=True)
class Field:
    """A column of the schema in the source's terms.

    `origin` is the source's column, `missing` the texts in it that stand for no value. `value` computes the
    typed value from a row of the source (of which it has the columns that are some field's origin), NULL
    where it cannot; without it the origin is read as the schema's dtype.
    """

    origin: str
    missing: tuple[str, ...] = ()
    value: Callable[[ir.Table], ir.Value] | None = None


@dataclass(frozen=True, kw_only=True)
class Feed:
    """How a source fills one table.

    `patterns` are paths or globs below the data folder, of which exactly one may match. `fields` maps the
    schema's columns; those left out are absent. `distinct`: the files repeat a key by design (users named
    in a file of ratings), so repeated rows are no fault. `unnest` is a list column of which each item makes a
    row; the item's place in the list, from 0, is the column `PLACE`.
    """

    patterns: tuple[str, ...]
    fields: Mapping[str, Field]
    distinct: bool = False
    unnest: str | None = None


PLACE = "place"

Adapter = Mapping[str, Feed]
"""A feed for each table, by the table's name; those of `schema.OPTIONAL_TABLES` may be left out."""


def same(*names: str) -> dict[str, Field]:
    """Return fields of columns that the source calls and writes as the schema does."""
    return {name: Field(origin=name) for name in names}
