"""The data path at scale: time and memory of each step, from a raw log to training sets.

Every step runs in a process of its own, so that its peak memory is its own. Its seconds leave imports out,
its CPU seconds, which other work on the machine changes less, do not.
Users and videos grow with the log, so that the history of a user does not. At the smallest size pandas does
what ingestion and features do, as a user would write it, and Feast's own file store a sample of the join;
`incremental` adds a day to a log of thirty.
"""

import json
import os
import shutil
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

    store = open_store(FEATURE_REPO, place.features, place.feature_store, config.engine)
    return partial(build_ranking_dataset, place.events, store, place.dataset, config.split)


def materialise(place: Workspace, config: Config) -> Run:
    """Write the newest features to SQLite."""
    from watchrank.feature_store import materialise, open_store

    store = open_store(FEATURE_REPO, place.features, place.feature_store, config.engine)
    return partial(materialise, store, datetime.now(UTC))


def candidate_dataset(place: Workspace, config: Config) -> Run:
    """Choose the watches to learn from and join them with their users' features."""
    from watchrank.datasets.candidates import build_candidate_dataset
    from watchrank.feature_store import open_store

    store = open_store(FEATURE_REPO, place.features, place.feature_store, config.engine)
    output, settings = place.candidate_dataset, config.examples
    return partial(build_candidate_dataset, place.events, store, output, settings, config.split)


STEPS = (simulate, ingest, validate, features, ranking_dataset, materialise, candidate_dataset)
TRAINING_SET = ("ingest", "validate", "features", "ranking_dataset")
"""From raw files to a training set."""


# -- Beside: what a user would otherwise do -----------------------------------------------------------


def pandas_ingest(place: Workspace, config: Config) -> Run:
    """Type, check, deduplicate and sort the impressions, and write them by day."""
    from beside_data_path import ingest

    return partial(ingest, place.log, place.root / "pandas" / "events")


def pandas_features(place: Workspace, config: Config) -> Run:
    """Make the activity and statistics tables of the impressions."""
    from beside_data_path import features

    return partial(features, place.root / "pandas" / "events", place.root / "pandas" / "features")


def sample_join(place: Workspace, config: Config) -> Run:
    """Join a sample of requests with the user features, by watchrank's offline store."""
    from beside_data_path import join

    return partial(join, FEATURE_REPO, place)


def feast_file_join(place: Workspace, config: Config) -> Run:
    """Join the same requests, by Feast's default store."""
    from beside_data_path import file_repo, join

    return partial(join, file_repo(FEATURE_REPO, place.root / "file_repo"), place)


BESIDE = (pandas_ingest, pandas_features, sample_join, feast_file_join)
PAIRS = {"pandas_ingest": "ingest", "pandas_features": "features", "feast_file_join": "sample_join"}


# -- A day more ---------------------------------------------------------------------------------------


def thirty_days(place: Workspace, config: Config) -> Run:
    """Ingest and build all days but the last."""
    from beside_data_path import split_last_day

    split_last_day(place.log, place.root / "first", place.root / "last")
    return partial(_ingest_and_build, place.root / "first", place, config)


def day(place: Workspace, config: Config) -> Run:
    """Ingest the last day, and build the features that it changes."""
    return partial(_ingest_and_build, place.root / "last", place, config)


def all_days(place: Workspace, config: Config) -> Run:
    """Ingest and build all days at once, elsewhere."""
    return partial(_ingest_and_build, place.log, Workspace(place.root / "at_once"), config)


def _ingest_and_build(log: Path, place: Workspace, config: Config) -> None:
    from watchrank.features import build_features
    from watchrank.ingestion import ingest

    started = time.perf_counter()
    ingest(log, "own", place.events, config.ingestion, config.engine)
    ingested = time.perf_counter()
    build_features(place.events, place.features, config.features, config.engine)
    built = time.perf_counter()
    print(f"ingest {ingested - started:.1f} s, features {built - ingested:.1f} s")


DAY = (simulate, thirty_days, day, all_days)


# -- Measuring ----------------------------------------------------------------------------------------


def measured(step: str, root: Path, overrides: list[str]) -> Measures:
    """Run a step in a process of its own.

    Returns:
        Its `seconds`; the `cpu_seconds` of the process, with imports; `peak_gigabytes`, the most that it or
        a process it started had in memory.
    """
    command = [sys.executable, __file__, "step", step, str(root), *overrides]
    with subprocess.Popen(command) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise typer.Exit(process.returncode)
    found: Measures = json.loads((root / "measured.json").read_text())
    cpu = usage.ru_utime + usage.ru_stime
    measures = found | {"cpu_seconds": cpu, "peak_gigabytes": usage.ru_maxrss * 1024 / 1e9}
    print(step, measures, f"load {os.getloadavg()[0]:.1f}", flush=True)
    return measures


def fresh(place: Path) -> Path:
    """Make an empty folder: a build over a former one would only add to it."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    return place


@app.command()
def step(name: str, root: Path, overrides: list[str]) -> None:
    """Run one step and leave its seconds in `measured.json`."""
    config = Config.load(overrides=overrides)
    chosen = {each.__name__: each for each in (*STEPS, *BESIDE, *DAY)}[name]
    run = chosen(Workspace(root), config)
    started = time.perf_counter()
    run()
    (root / "measured.json").write_text(json.dumps({"seconds": time.perf_counter() - started}))


@app.command()
def sizes(
    impressions: Annotated[list[int], typer.Argument(help="sizes of the log, the smallest first")],
    setting: Annotated[list[str] | None, typer.Option("--set", help="a setting of `watchrank`")] = None,
    root: Annotated[Path, typer.Option(help="folder of the workspaces")] = ROOT,
    beside: Annotated[bool, typer.Option(help="pandas and Feast's file store, at the smallest size")] = True,
) -> None:
    """Run the steps at each size; print a table and write <root>/sizes.json."""
    found: dict[str, dict[str, Measures]] = {}
    for size in impressions:
        place = fresh(root / str(size))
        overrides = [f"simulation.impressions={size}", *SIZES[size], *(setting or [])]
        steps = [*STEPS, *(BESIDE if beside and size == impressions[0] else ())]
        found[str(size)] = {each.__name__: measured(each.__name__, place, overrides) for each in steps}
        (root / "sizes.json").write_text(json.dumps(found, indent=2) + "\n")
    console = Console(width=120)
    console.print(steps_table(found))
    if beside:
        console.print(beside_table(found[str(impressions[0])]))


@app.command()
def incremental(
    impressions: Annotated[int, typer.Argument(help="size of the log of 31 days")] = 1_000_000,
    root: Annotated[Path, typer.Option(help="folder of the workspace")] = ROOT,
) -> None:
    """Add a day to a log of thirty; print a table and write <root>/incremental.json."""
    place = fresh(root / f"incremental-{impressions}")
    overrides = [f"simulation.impressions={impressions}", *SIZES[impressions], "simulation.days=31"]
    found = {each.__name__: measured(each.__name__, place, overrides) for each in DAY}
    (root / "incremental.json").write_text(json.dumps(found, indent=2) + "\n")
    table = Table("step", "seconds", "peak GB", title="Ingestion and features of a log of 31 days")
    for name, measures in found.items():
        table.add_row(name, f"{measures['seconds']:.1f}", f"{measures['peak_gigabytes']:.1f}")
    Console(width=120).print(table)


def steps_table(found: dict[str, dict[str, Measures]]) -> Table:
    """Lay out the steps, and how often as long each takes at the largest size as at the smallest."""
    table = Table("step", title="The data path: seconds, rows a second, peak GB")
    for size in found:
        table.add_column(f"{int(size):,} impressions", justify="right")
    table.add_column("x", justify="right")
    rows = {each.__name__: [each.__name__] for each in STEPS} | {"raw to training set": list(TRAINING_SET)}
    for name, steps in rows.items():
        cells, seconds = [], []
        for size, measures in found.items():
            seconds.append(sum(measures[step]["seconds"] for step in steps))
            peak = max(measures[step]["peak_gigabytes"] for step in steps)
            cells.append(f"{seconds[-1]:.1f}  {int(size) / seconds[-1]:,.0f}  {peak:.1f}")
        table.add_row(name, *cells, f"{seconds[-1] / seconds[0]:.1f}")
    return table


def beside_table(found: dict[str, Measures]) -> Table:
    """Lay out what watchrank takes beside the others."""
    table = Table("step", "seconds", "peak GB", "watchrank's", "peak GB", "x", title="Beside")
    for other, own in PAIRS.items():
        cells = [
            f"{found[name][unit]:.1f}" for name in (other, own) for unit in ("seconds", "peak_gigabytes")
        ]
        table.add_row(other, *cells, f"{found[other]['seconds'] / found[own]['seconds']:.1f}")
    return table


if __name__ == "__main__":
    app()
