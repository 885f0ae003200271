"""Great Expectations suites made from the schema, run over an events folder, told in one page."""

from watchrank.validation.report import Check, SuiteResult, ValidationReport
from watchrank.validation.run import validate

__all__ = ["Check", "SuiteResult", "ValidationReport", "validate"]
