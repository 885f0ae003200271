"""Great Expectations, kept in memory: run a suite on frames, put the frames' findings together."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import great_expectations as gx
import pandas as pd
from great_expectations.core.run_identifier import RunIdentifier
from great_expectations.data_context.types.base import (
    DataContextConfig,
    InMemoryStoreBackendDefaults,
    ProgressBarsConfig,
)

from watchrank.validation.report import Check, Status, SuiteResult

EXAMPLES = 3

PREPOSITION = {"files": "in", "values": "at", "days": "on"}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one frame says about one rule; `remark` takes the place of counts and examples."""

    status: Status
    checked: int
    failing: int = 0
    examples: tuple[str, ...] = ()
    remark: str = ""


class Runner:
    """Runs suites in a throw-away context that writes nothing but its Data Docs site."""

    def __init__(self, site: Path) -> None:
        config = DataContextConfig(
            store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
            analytics_enabled=False,
            progress_bars=ProgressBarsConfig(globally=False),
        )
        self._context = gx.get_context(mode="ephemeral", project_config=config)
        self._context.add_data_docs_site("site", _site_config(site))
        self._source = self._context.data_sources.add_pandas("events")

    def run(
        self,
        suite: gx.ExpectationSuite,
        frames: Iterable[tuple[str, pd.DataFrame]],
        key: tuple[str, ...] = (),
    ) -> SuiteResult:
        """Run a suite on one frame after another and take the findings together.

        Args:
            suite: the rules.
            frames: each with the name of its run in the Data Docs; only one is held at a time.
            key: the columns that tell where a row is; the frame's index when there are none.
        """
        asset = self._source.add_dataframe_asset(suite.name)
        definition = self._context.validation_definitions.add(
            gx.ValidationDefinition(
                name=suite.name,
                data=asset.add_batch_definition_whole_dataframe("whole"),
                suite=self._context.suites.add(suite),
            )
        )
        findings: dict[str, list[Finding]] = {}
        for name, frame in frames:
            outcome = definition.run(
                batch_parameters={"dataframe": frame},
                result_format={"result_format": "SUMMARY", "partial_unexpected_count": EXAMPLES},
                run_id=RunIdentifier(run_name=name),
            )
            for result in outcome.results:
                rule = result.expectation_config.description
                findings.setdefault(rule, []).append(_finding(suite, result, frame, key))
        return _take_together(suite, findings)

    def build_site(self) -> None:
        """Write the Data Docs of everything that was run."""
        self._context.build_data_docs()


def unchecked(suite: gx.ExpectationSuite) -> SuiteResult:
    """Return the result of a suite that was not run."""
    return _take_together(suite, {})


def _site_config(site: Path) -> dict[str, Any]:
    return {
        "class_name": "SiteBuilder",
        "show_how_to_buttons": False,
        "store_backend": {
            "class_name": "TupleFilesystemStoreBackend",
            "base_directory": str(site.absolute()),
        },
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
    }


def _finding(suite: gx.ExpectationSuite, result: Any, frame: pd.DataFrame, key: tuple[str, ...]) -> Finding:
    if problem := _exception(result.exception_info):
        return Finding(status="not checked", checked=0, remark=problem)
    if result.success:
        return Finding(status="passed", checked=len(frame))
    if mismatched := result.result.get("details", {}).get("mismatched"):
        remark = _mismatch(mismatched)
        return Finding(status="failed", checked=len(frame), failing=len(frame), remark=remark)
    return Finding(
        status="failed",
        checked=len(frame),
        failing=result.result["unexpected_count"],
        examples=tuple(_examples(suite, result, frame, key)),
    )


def _exception(info: dict[str, Any]) -> str:
    """Return the message of the exception that a rule met, or nothing."""
    infos = [info] if "raised_exception" in info else info.values()
    return next((str(one["exception_message"]) for one in infos if one["raised_exception"]), "")


def _mismatch(mismatched: dict[str, list[str]]) -> str:
    words = [f"{name} is missing" for name in mismatched.get("missing", [])]
    words += [f"{name} is unexpected" for name in mismatched.get("unexpected", [])]
    return ", ".join(words)


def _examples(
    suite: gx.ExpectationSuite, result: Any, frame: pd.DataFrame, key: tuple[str, ...]
) -> list[str]:
    """Return the first bad values in words, each with the place where it is."""
    values = result.result["partial_unexpected_list"]
    labels = result.result["partial_unexpected_index_list"]
    meta = result.expectation_config.meta
    if isinstance(values[0], dict):
        return [_pairs(value) for value in values]
    places = _places(frame.loc[labels], key, meta["column"]) if key else [str(label) for label in labels]
    word = PREPOSITION[suite.meta["unit"]]
    return [
        f"{_words(value)} {word} {place}" if place else _words(value)
        for value, place in zip(values, places, strict=True)
    ]


def _places(rows: pd.DataFrame, key: tuple[str, ...], column: str) -> list[str]:
    """Tell by their key where rows are; the broken column itself tells nothing."""
    others = rows[[name for name in key if name != column]]
    return [_pairs(row) for row in others.to_dict("index").values()]


def _pairs(row: Mapping[Any, Any]) -> str:
    return ", ".join(f"{name} {_words(value)}" for name, value in row.items())


def _words(value: Any) -> str:
    if value is None or value is pd.NA or value is pd.NaT:
        return "null"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _take_together(suite: gx.ExpectationSuite, findings: dict[str, list[Finding]]) -> SuiteResult:
    checks = tuple(_check(suite, rule, findings.get(rule.description, [])) for rule in suite.expectations)
    return SuiteResult(
        name=suite.name,
        table=suite.meta["table"],
        unit=suite.meta["unit"],
        success=all(check.status == "passed" for check in checks),
        checks=checks,
    )


def _check(suite: gx.ExpectationSuite, rule: Any, findings: list[Finding]) -> Check:
    """Add up what the frames say about one rule."""
    statuses = {finding.status for finding in findings} or {"not checked"}
    checked = sum(finding.checked for finding in findings)
    failing = sum(finding.failing for finding in findings)
    examples = tuple(example for finding in findings for example in finding.examples)[:EXAMPLES]
    remark = next((finding.remark for finding in findings if finding.remark), "")
    status: Status = next(one for one in ("failed", "not checked", "passed") if one in statuses)
    return Check(
        column=rule.meta["column"],
        rule=rule.description,
        status=status,
        checked=checked,
        failing=failing,
        observed=remark or _observed(status, checked, failing, suite.meta["unit"], examples),
        examples=examples,
    )


def _observed(status: Status, checked: int, failing: int, unit: str, examples: tuple[str, ...]) -> str:
    if status == "not checked":
        return "the columns of every table come first"
    if status == "passed":
        return f"all {checked:,} {unit}" if checked != 1 else f"1 {unit[:-1]}"
    example = f" (for example {examples[0]})" if examples else ""
    return f"{failing:,} of {checked:,} {unit} {'is' if failing == 1 else 'are'} not{example}"
