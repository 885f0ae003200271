"""The data path at scale: time and memory of each step, from a raw log to training sets.

Every step runs in a process of its own, so that its peak memory is its own. Its seconds leave imports out.
Users and videos grow with the log, so that the history of a user does not.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from watchrank.config import Config
from watchrank.workspace import Workspace

ROOT = Path("work/benchmarks/data_path")
FEATURE_REPO = Path("feature_repo")
SIZES = {
    1_000_000: ("simulation.users=8000", "simulation.videos=5000"),
    10_000_000: ("simulation.users=80000", "simulation.videos=20000"),
    50_000_000: ("simulation.users=400000", "simulation.videos=50000"),
}

Run = Callable[[], object]
Measures = dict[str, float]
app = typer.Typer(add_completion=False)


# -- The steps: what to import, then what to run ------------------------------------------------------


def simulate(place: Workspace, config: Config) -> Run:
    """Write the raw log."""
    from watchrank.simulation import simulate

    return partial(simulate, place.log, place.truth, config.simulation)


def ingest(place: Workspace, config: Config) -> Run:
    """Bring the raw log into days."""
    from watchrank.ingestion import ingest

    return partial(ingest, place.log, "own", place.events, config.ingestion, config.engine)


def validate(place: Workspace, config: Config) -> Run:
    """Check the days."""
    from watchrank.validation import validate

    return partial(validate, place.events, place.validation, config.validation)


def features(place: Workspace, config: Config) -> Run:
    """Build the feature tables."""
    from watchrank.features import build_features

    return partial(build_features, place.events, place.features, config.features, config.engine)


def ranking_dataset(place: Workspace, config: Config) -> Run:
    """Join the impressions with the features of their time."""
    from watchrank.datasets.ranking import build_ranking_dataset
    from watchrank.feature_store import open_store

    store = open_store(FEATURE_REPO, place.features, place.feature_store)
    return partial(build_ranking_dataset, place.events, store, place.dataset, config.split)


def materialise(place: Workspace, config: Config) -> Run:
    """Write the newest features to SQLite."""
    from watchrank.feature_store import materialise, open_store

    store = open_store(FEATURE_REPO, place.features, place.feature_store)
    return partial(materialise, store, datetime.now(UTC))


def candidate_dataset(place: Workspace, config: Config) -> Run:
    """Choose the watches to learn from and join them with their users' features."""
    from watchrank.datasets.candidates import build_candidate_dataset
    from watchrank.feature_store import open_store

    store = open_store(FEATURE_REPO, place.features, place.feature_store)
    output, settings = place.candidate_dataset, config.examples
    return partial(build_candidate_dataset, place.events, store, output, settings, config.split)


STEPS = (simulate, ingest, validate, features, ranking_dataset, materialise, candidate_dataset)
TRAINING_SET = (ingest, validate, features, ranking_dataset)
"""From raw files to a training set."""


# -- Measuring ----------------------------------------------------------------------------------------


def measured(step: str, root: Path, overrides: list[str]) -> Measures:
    """Run a step in a process of its own.

    Returns:
        Its `seconds`, and `peak_gigabytes`, the most that the process or one it started had in memory.
    """
    command = [sys.executable, __file__, "step", step, str(root), *overrides]
    with subprocess.Popen(command) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise typer.Exit(process.returncode)
    found: Measures = json.loads((root / "measured.json").read_text())
    return found | {"peak_gigabytes": usage.ru_maxrss * 1024 / 1e9}


@app.command()
def step(name: str, root: Path, overrides: list[str]) -> None:
    """Run one step and leave its seconds in `measured.json`."""
    config = Config.load(overrides=overrides)
    chosen = {each.__name__: each for each in STEPS}[name]
    run = chosen(Workspace(root), config)
    started = time.perf_counter()
    run()
    (root / "measured.json").write_text(json.dumps({"seconds": time.perf_counter() - started}))


@app.command()
def sizes(
    impressions: Annotated[list[int], typer.Argument(help="sizes of the log, the smallest first")],
    setting: Annotated[list[str], typer.Option("--set", help="a setting, as of `watchrank`")] = [],
    root: Annotated[Path, typer.Option(help="folder of the workspaces")] = ROOT,
    steps: Annotated[str, typer.Option(help="the steps to run, with commas; all when not given")] = "",
) -> None:
    """Run the steps at each size; print a table and write <root>/data_path.json."""
    found: dict[str, dict[str, Measures]] = {}
    for size in impressions:
        place = root / str(size)
        place.mkdir(parents=True, exist_ok=True)
        overrides = [f"simulation.impressions={size}", *SIZES[size], *setting]
        names = steps.split(",") if steps else [each.__name__ for each in STEPS]
        found[str(size)] = {}
        for name in names:
            measures = measured(name, place, overrides)
            found[str(size)][name] = measures | {"rows_a_second": size / measures["seconds"]}
            print(size, name, found[str(size)][name], os.getloadavg(), flush=True)
        (root / "data_path.json").write_text(json.dumps(found, indent=2) + "\n")
    Console(width=120).print(as_table(found))


def as_table(found: dict[str, dict[str, Measures]]) -> Table:
    """Lay out the measures: a row a step, a group of columns a size, how often as long the last takes."""
    table = Table("step", title="The data path: seconds, rows a second, peak GB")
    for size in found:
        table.add_column(f"{int(size):,}", justify="right")
    return table


if __name__ == "__main__":
    app()
