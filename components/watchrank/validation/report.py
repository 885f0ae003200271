"""What a validation found: as data, as the sentences of the error, and as one HTML page."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined

from watchrank.storage import atomic_path, write_json

Status = Literal["passed", "failed", "not checked"]

SHOWN_FAULTS = 5


@dataclass(frozen=True, kw_only=True)
class Check:
    """One rule and what was observed.

    `rule` reads "X must be Y" and `observed` follows it as "but ..." when the rule is broken. `column` is
    empty for a rule on the whole table. `checked` and `failing` count files, values or days.
    """

    column: str
    rule: str
    status: Status
    checked: int
    failing: int
    observed: str
    examples: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SuiteResult:
    """One suite: its table, what it counts (files, values, days) and its rules in order."""

    name: str
    table: str
    unit: str
    success: bool
    checks: tuple[Check, ...]

    @property
    def status(self) -> Status:
        """The suite as a whole: not checked when none of its rules was."""
        if all(check.status == "not checked" for check in self.checks):
            return "not checked"
        return "passed" if self.success else "failed"

    def count(self, status: Status) -> int:
        """Count the rules of that status."""
        return sum(check.status == status for check in self.checks)


@dataclass(frozen=True, kw_only=True)
class ValidationReport:
    """The whole validation.

    `absent` names the columns that the source declared absent, as "table.column". `days` holds one row a
    day of the impressions: date, rows, volume_ratio, click_rate, busiest_user_share, new_users_share,
    new_videos_share, unknown_users, unknown_videos, days_since_previous; it is empty when the values were not
    checked. `seconds` is how long it took.
    """

    success: bool
    seconds: float
    absent: tuple[str, ...]
    suites: tuple[SuiteResult, ...]
    days: tuple[dict[str, Any], ...]

    def faults(self) -> list[str]:
        """Return one sentence for each broken rule; where none is, for each that could not be checked."""
        return self._sentences("failed") or self._sentences("not checked")

    def _sentences(self, status: Status) -> list[str]:
        return [
            f"{suite.table}: {check.rule}, but {check.observed}."
            for suite in self.suites
            for check in suite.checks
            if check.status == status
        ]


def failure_message(report: ValidationReport, page: Path) -> str:
    """Return the text of the error: the first faults, where to read on and what to do."""
    faults = report.faults()
    more = [f"And {len(faults) - SHOWN_FAULTS} more."] if len(faults) > SHOWN_FAULTS else []
    remedy = f"See {page}. Fix the log or the bound in `validation`."
    return " ".join([*faults[:SHOWN_FAULTS], *more, remedy])


def write_report(report: ValidationReport, output: Path) -> None:
    """Write `report.json` and the self-contained page `report.html` into `output`."""
    write_json(output / "report.json", asdict(report))
    environment = Environment(
        loader=PackageLoader("watchrank", "validation"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    page = environment.get_template("report.html.j2").render(report=report)
    with atomic_path(output / "report.html") as fresh:
        fresh.write_text(page, encoding="utf-8")
