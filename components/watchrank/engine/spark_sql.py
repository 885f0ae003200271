"""Spark's SQL of an Ibis expression, where Ibis' own says something else than DuckDB's or does not say it.

What is measured against is DuckDB 2.0: how it reads numbers and times in a text and writes them as one, and
what it takes for missing.
"""

from typing import Any, ClassVar

import ibis.expr.datatypes as dt
import sqlglot.expressions as sge
from ibis.backends.sql.compilers.base import SQLGlotCompiler
from ibis.backends.sql.compilers.pyspark import PySparkCompiler

_DIGITS = "[0-9]+(_[0-9]+)*"
NUMBER = f"^[+-]?({_DIGITS}([.]({_DIGITS})?)?|[.]{_DIGITS})([eE][+-]?{_DIGITS})?$"
"""A number in a text; Spark would also read 1d."""

_CLOCK = "[0-9]{1,2}:[0-9]{1,2}(:[0-9]{1,2}([.][0-9]*)?)?"
_ZONE = "Z|[+-][0-9]{2}(:?[0-9]{2}(:[0-9]{2})?)?| +[A-Za-z][A-Za-z0-9_+/-]+"
_DATE = "([0-9]{4,6})[-/ ]([0-9]{1,2})[-/ ]([0-9]{1,2})"
TIME = f"^{_DATE}((T| +){_CLOCK}({_ZONE})?)?$"
"""A time in a text; Spark would also read 2026, or 12:30 as one of today."""


class Compiler(PySparkCompiler):  # type: ignore[misc]
    """Ibis' compiler for Spark, with what DuckDB means."""

    __slots__ = ()

    SIMPLE_OPS: ClassVar[dict[Any, str]] = {}
    """None besides Ibis': they would come before the methods below."""

    visit_IsNull = SQLGlotCompiler.visit_IsNull
    """NaN is a value."""

    visit_NotNull = SQLGlotCompiler.visit_NotNull

    def visit_IsInf(self, op: Any, *, arg: Any) -> Any:
        """Tell what Ibis 12 compares in Python, where it is never so."""
        return self.f.abs(arg).eq(self.POS_INF)

    def visit_TryCast(self, op: Any, *, arg: Any, to: Any) -> Any:
        """Read a number or a time in a text as DuckDB does, and no real number above 64 bits."""
        cast = super().visit_TryCast
        if op.arg.dtype.is_floating() and to.is_integer():
            return self.if_(arg < 2.0**63, cast(op, arg=arg, to=to), sge.Null())
        if not op.arg.dtype.is_string():
            return cast(op, arg=arg, to=to)
        if to.is_numeric():
            text = self.visit_Strip(op, arg=arg)
            plain = self.f.replace(text, "_", "")
            exact = cast(op, arg=plain, to=dt.Decimal(38, 9)) if to.is_integer() else plain
            return self.if_(self.f.regexp_like(text, NUMBER), cast(op, arg=exact, to=to), sge.Null())
        if to.is_timestamp():
            text = self.visit_Strip(op, arg=arg)
            spaced = self.f.regexp_replace(text, f"^{_DATE}(T| +)?", "$1-$2-$3 ")
            whole = self.f.regexp_replace(spaced, "( [0-9]{1,2}:[0-9]{1,2})(?![0-9:])", "$1:00")
            return self.if_(self.f.regexp_like(text, TIME), cast(op, arg=whole, to=to), sge.Null())
        return cast(op, arg=arg, to=to)

    def visit_Cast(self, op: Any, *, arg: Any, to: Any) -> Any:
        """Write a time or a real number as text as DuckDB does."""
        text = super().visit_Cast(op, arg=arg, to=to)
        kind = op.arg.dtype
        if not to.is_string():
            return text
        if kind.is_timestamp() and kind.timezone:
            return self.f.concat(text, "+00")
        return self._real_text(arg, text) if kind.is_floating() else text

    def _real_text(self, value: Any, java: Any) -> Any:
        """Rewrite Java's text of a real number, which has an exponent from 1e7 on and below 1e-3."""
        places = self.cast(self.cast(java, dt.Decimal(38, 21)), dt.string)
        plain = self.f.regexp_replace(places, "([.][0-9]+?)0+$", "$1")
        signed = self.f.regexp_replace(self.f.regexp_replace(java, "([.]0)?E-", "e-"), "([.]0)?E", "e+")
        padded = self.f.regexp_replace(signed, "(?<=e[+-])([0-9])$", "0$1")
        short = self.f.replace(self.f.replace(padded, "Infinity", "inf"), "NaN", "nan")
        size = self.f.abs(value)
        return self.if_(self.f.regexp_like(java, "E") & (size >= 1e-4) & (size < 1e16), plain, short)

    def visit_Hash(self, op: Any, *, arg: Any) -> Any:
        """Hash in 64 bits; that a field is missing counts, which Spark passes over."""
        if not op.arg.dtype.is_struct():
            return self.f.anon.xxhash64(arg)
        missing = [
            sge.Dot(this=arg, expression=sge.to_identifier(name, quoted=True)) for name in op.arg.dtype
        ]
        return self.f.anon.xxhash64(arg, *(field.is_(sge.Null()) for field in missing))

    def visit_Lowercase(self, op: Any, *, arg: Any) -> Any:
        """Lower each character by itself: without the sigma at a word's end and the dot above."""
        return self.f.lower(self.f.translate(arg, "Σİ", "σi"))

    def visit_StringSplit(self, op: Any, *, arg: Any, delimiter: Any) -> Any:
        """Split at a text; Spark's takes a pattern."""
        return self.f.anon.split(arg, self.f.concat(r"\Q", delimiter, r"\E"))

    def visit_TimestampFromUNIX(self, op: Any, *, arg: Any, unit: Any) -> Any:
        """Count seconds, or their parts, from 1970."""
        names = {"s": "timestamp_seconds", "ms": "timestamp_millis", "us": "timestamp_micros"}
        return self.f.anon[names[unit.short]](arg)

    def visit_IntervalFromInteger(self, op: Any, *, arg: Any, unit: Any) -> Any:
        """Make seconds an interval that times in a window can be moved by."""
        assert unit.short == "s", unit
        return self.f.anon.make_dt_interval(0, 0, 0, arg)

    def visit_ArraySlice(self, op: Any, *, arg: Any, start: Any, stop: Any) -> Any:
        """Cut by whole numbers of 32 bits, as Spark wants."""
        start, stop = (bound if bound is None else self.cast(bound, dt.int32) for bound in (start, stop))
        return super().visit_ArraySlice(op, arg=arg, start=start, stop=stop)
