"""Commands from a raw log to trained and measured models, and the reports on them."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.table import Table

from watchrank.cli.app import (
    FEATURE_REPO,
    HERE,
    ConfigOption,
    RepoOption,
    RepositoryOption,
    SetOption,
    WorkspaceOption,
    app,
    console,
    metrics_table,
    newcomers,
    tasks_table,
)
from watchrank.config import Config
from watchrank.errors import InputError
from watchrank.workspace import Workspace


@app.command()
def settings(config: ConfigOption = None, override: SetOption = None) -> None:
    """Print every setting with its value, as YAML."""
    print(yaml.safe_dump(Config.load(config, override).model_dump(mode="json"), sort_keys=False), end="")


@app.command()
def simulate(
    workspace: WorkspaceOption = HERE, config: ConfigOption = None, override: SetOption = None
) -> None:
    """Write a log with known expected watch time to <workspace>/log, its truth to <workspace>/truth."""
    from watchrank.simulation import simulate_into

    place = Workspace(workspace)
    with console.status("simulating"):
        simulate_into(place, Config.load(config, override).simulation)
    console.print(f"Simulated log in {place.log}.")


@app.command()
def ingest(
    data: Annotated[
        str | None,
        typer.Option(help="folder of the log or s3://bucket/prefix; <workspace>/log when not given"),
    ] = None,
    source: Annotated[str, typer.Option(help="format of the log: own, kuairand or movielens")] = "own",
    workspace: WorkspaceOption = HERE,
    config: ConfigOption = None,
    override: SetOption = None,
) -> None:
    """Read a log into <workspace>/events: typed, deduplicated, by day; bad rows go to its quarantine."""
    from watchrank.ingestion import ingest
    from watchrank.ingestion.location import local_log

    place, settings = Workspace(workspace), Config.load(config, override)
    with console.status("ingesting"), local_log(data or str(place.log), source) as log:
        report = ingest(log, source, place.events, settings.ingestion, settings.engine)
    for name, table in report.tables.items():
        bad = ", ".join(f"{count:,} {reason}" for reason, count in table.quarantined.items()) or "none"
        console.print(f"{name}: {table.rows:,} rows; quarantined: {bad}.")


@app.command()
def validate(
    workspace: WorkspaceOption = HERE, config: ConfigOption = None, override: SetOption = None
) -> None:
    """Check <workspace>/events against the suites; write <workspace>/validation."""
    from watchrank.validation import validate

    place = Workspace(workspace)
    with console.status("validating"):
        report = validate(place.events, place.validation, Config.load(config, override).validation)
    console.print(f"{len(report.suites)} suites passed; see {place.validation / 'report.html'}.")


@app.command()
def features(
    workspace: WorkspaceOption = HERE,
    feature_repo: RepoOption = FEATURE_REPO,
    config: ConfigOption = None,
    override: SetOption = None,
) -> None:
    """Build <workspace>/features, apply the Feast definitions and materialise the online store."""
    from watchrank.feature_store import materialise, open_store
    from watchrank.features import build_features

    place, settings = Workspace(workspace), Config.load(config, override)
    with console.status("building the feature tables"):
        build_features(place.events, place.features, settings.features, settings.engine)
    with console.status("materialising the online store"):
        store = open_store(feature_repo, place.features, place.feature_store, settings.engine)
        materialise(store, datetime.now(UTC))
    console.print(f"Features in {place.features}, online store in {place.feature_store}.")


@app.command()
def dataset(
    workspace: WorkspaceOption = HERE,
    feature_repo: RepoOption = FEATURE_REPO,
    config: ConfigOption = None,
    override: SetOption = None,
) -> None:
    """Join events with Feast's features as of each impression into <workspace>/dataset."""
    from watchrank.datasets.ranking import build_ranking_dataset
    from watchrank.feature_store import open_store

    place, settings = Workspace(workspace), Config.load(config, override)
    store = open_store(feature_repo, place.features, place.feature_store, settings.engine)
    with console.status("joining impressions with their features"):
        build_ranking_dataset(place.events, store, place.dataset, settings.split)
    console.print(f"Dataset in {place.dataset}.")


@app.command()
def train(workspace: WorkspaceOption = HERE, config: ConfigOption = None, override: SetOption = None) -> None:
    """Train the ranking model into <workspace>/model; a run that was killed goes on where it stopped."""
    from watchrank.training.ranking import train_ranking

    place, settings = Workspace(workspace), Config.load(config, override)
    for line in train_ranking(place.dataset, place.model, settings.ranking, settings.training):
        console.print(str(line), highlight=False, soft_wrap=True)


@app.command()
def evaluate(
    workspace: WorkspaceOption = HERE,
    model_repository: RepositoryOption = None,
    config: ConfigOption = None,
    override: SetOption = None,
) -> None:
    """Measure the model on the test window; fail when it is worse than what serves or than its baselines.

    Writes <workspace>/evaluation: the metrics, the report, and the gate's decision in gate.json and gate.md.
    """
    from watchrank.deployment.model_repository import serving
    from watchrank.evaluation.evaluate import evaluate_ranking
    from watchrank.evaluation.gate import gate_ranking

    place, settings = Workspace(workspace), Config.load(config, override)
    truth = place.truth if place.truth.is_dir() else None
    with console.status("evaluating"):
        results = evaluate_ranking(place.model, place.dataset, place.evaluation, truth)
    console.print(metrics_table(results))
    if "tasks" in results:
        console.print(tasks_table(results))
    console.print(f"Report: {place.evaluation / 'report.html'}")
    champion = place.release(serving(model_repository or place.model_repository, "ranking"))
    with console.status("holding it against what serves"):
        decision = gate_ranking(place.model, place.dataset, champion, place.evaluation, settings.gates)
    console.print(f"{decision.verdict} Decision: {place.evaluation / 'gate.md'}", soft_wrap=True)
    decision.require()


@app.command()
def candidate_dataset(
    workspace: WorkspaceOption = HERE,
    feature_repo: RepoOption = FEATURE_REPO,
    config: ConfigOption = None,
    override: SetOption = None,
) -> None:
    """Choose the examples of candidate generation and join them into <workspace>/candidate_dataset."""
    from watchrank.datasets.candidates import build_candidate_dataset
    from watchrank.feature_store import open_store

    place, settings = Workspace(workspace), Config.load(config, override)
    store = open_store(feature_repo, place.features, place.feature_store, settings.engine)
    with console.status("joining watches with what was known before them"):
        build_candidate_dataset(
            place.events, store, place.candidate_dataset, settings.examples, settings.split
        )
    console.print(f"Examples in {place.candidate_dataset}.")


@app.command()
def train_candidates(
    workspace: WorkspaceOption = HERE, config: ConfigOption = None, override: SetOption = None
) -> None:
    """Train candidate generation into <workspace>/candidate_model."""
    from watchrank.training.candidate_generation import train_candidates

    place, settings = Workspace(workspace), Config.load(config, override)
    curve = train_candidates(
        place.candidate_dataset, place.candidate_model, settings.candidates, settings.candidate_training
    )
    for line in curve:
        console.print(str(line), highlight=False, soft_wrap=True)


@app.command()
def evaluate_candidates(
    workspace: WorkspaceOption = HERE, config: ConfigOption = None, override: SetOption = None
) -> None:
    """Measure candidate generation on held-out watches; fail when it does not beat popularity and kNN."""
    from watchrank.evaluation.candidates import check_gates, evaluate_candidates

    place, settings = Workspace(workspace), Config.load(config, override)
    with console.status("ranking the catalogue for every test user"):
        results = evaluate_candidates(
            place.candidate_model, place.candidate_dataset, place.candidate_evaluation
        )
    console.print(metrics_table(results))
    console.print(newcomers(results), soft_wrap=True)
    check_gates(results, settings.gates)


@app.command()
def search_dataset(
    workspace: WorkspaceOption = HERE, config: ConfigOption = None, override: SetOption = None
) -> None:
    """Choose the searches that led to a watch; write them and all titles to <workspace>/search_dataset."""
    from watchrank.datasets.searches import build_search_dataset

    place, settings = Workspace(workspace), Config.load(config, override)
    with console.status("reading searches and titles"):
        build_search_dataset(
            place.events, place.search_dataset, settings.text, settings.split, settings.engine
        )
    console.print(f"Examples in {place.search_dataset}.")


@app.command()
def train_text(
    workspace: WorkspaceOption = HERE, config: ConfigOption = None, override: SetOption = None
) -> None:
    """Train text matching into <workspace>/text_model."""
    from watchrank.training.text_matching import train_text

    place, settings = Workspace(workspace), Config.load(config, override)
    for line in train_text(place.search_dataset, place.text_model, settings.text, settings.text_training):
        console.print(str(line), highlight=False, soft_wrap=True)


@app.command()
def evaluate_text(workspace: WorkspaceOption = HERE) -> None:
    """Measure text matching on the test window's searches; write <workspace>/text_evaluation."""
    from watchrank.evaluation.text import evaluate_text

    place = Workspace(workspace)
    with console.status("ranking all titles for every test search"):
        results = evaluate_text(place.text_model, place.search_dataset, place.text_evaluation)
    console.print(metrics_table(results))
    new = results["brand_new"]
    found = [f"{name} {metrics['recall@100']:.4f}" for name, metrics in new["models"].items()]
    console.print(
        f"recall@100 of the {new['searches']:,} searches for brand-new videos: {', '.join(found) or 'none'}",
        soft_wrap=True,
    )


@app.command()
def study(
    name: Annotated[
        str,
        typer.Argument(
            help="hidden, inputs, objective or weighting of the ranker, all four when not given; tasks: each "
            "alone and together; multi_task on synthetic data; depth, example_age or tied of candidate "
            "generation; diversity of the last release"
        ),
    ] = "",
    seeds: Annotated[int, typer.Option(min=1, help="trainings a variant")] = 3,
    workspace: WorkspaceOption = HERE,
    override: SetOption = None,
) -> None:
    """Compare variants of a model over seeds; write a table and a plot to <workspace>/studies."""
    from watchrank.studies import candidates, diversity, multi_task, ranking, tasks
    from watchrank.studies.runs import Runs

    of_ranking = ranking.STUDIES | tasks.STUDIES | multi_task.STUDIES
    studies = of_ranking | candidates.STUDIES | diversity.STUDIES
    if name and name not in studies:
        raise InputError(f"There is no study {name!r}. There are: {', '.join(studies)}.")
    runs = Runs(Workspace(workspace), tuple(override or ()), seeds)
    for chosen in [name] if name else ranking.STUDIES:
        found = studies[chosen](runs)
        found.write(runs, chosen)
        table = Table(*found.rows[0], title=found.title)
        for row in found.rows:
            table.add_row(*row.values())
        console.print(table)
        console.print(f"{found.note} Page: {runs.place.studies / chosen}.html", markup=False)


@app.command()
def drift(
    log: Annotated[
        Path | None, typer.Option(help="folder of a request log; the dataset's test window when not given")
    ] = None,
    workspace: WorkspaceOption = HERE,
    config: ConfigOption = None,
    override: SetOption = None,
) -> None:
    """Hold features of now against those of the training window; write <workspace>/drift."""
    from watchrank.datasets.ranking import RankingDataset
    from watchrank.evaluation.drift import drift_report

    place, settings = Workspace(workspace), Config.load(config, override)
    data = RankingDataset.open(place.dataset)
    events = place.events if log else None
    found = drift_report(data.split("train"), log or data.split("test"), place.drift, events, settings.drift)
    table = Table("feature", "PSI", "by chance", "reading")
    for feature in found["features"][:15]:
        values = (f"{feature[name]:.3f}" for name in ("psi", "noise"))
        table.add_row(feature["name"], *values, feature["reading"])
    console.print(table)
    console.print(f"Report: {place.drift / 'drift.html'}")


@app.command()
def skew(
    sample: Annotated[int, typer.Option(min=1, help="users, and videos, to compare")] = 1_000,
    workspace: WorkspaceOption = HERE,
    feature_repo: RepoOption = FEATURE_REPO,
) -> None:
    """Hold the online store's features against the offline ones; write <workspace>/skew."""
    from watchrank.evaluation.skew import sampled_ids, skew_report
    from watchrank.feature_store import open_store
    from watchrank.schema import USER_PROFILE, VIDEO_PROFILE

    place = Workspace(workspace)
    store = open_store(feature_repo, place.features, place.feature_store)
    users, videos = (sampled_ids(place.features, table, sample) for table in (USER_PROFILE, VIDEO_PROFILE))
    found = skew_report(store, users, videos, None, place.skew)
    console.print(
        f"{len(found['features'])} features compared, {len(found['differing'])} differ"
        f"{': ' if found['differing'] else ''}{', '.join(found['differing'])}."
    )
    console.print(f"Report: {place.skew / 'skew.html'}")
