"""The `watchrank` command: one subcommand a stage, all on one workspace folder.

Exit codes: 0 done; 1 unexpected; 2 bad input or usage; 3 the data failed validation; 4 the exported
graph differs from the model; 5 the server did not take up the release; 6 a model does not beat its gates.
"""

import asyncio
import json
import logging
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from watchrank.config import Config, DeploymentSettings
from watchrank.errors import InputError, WatchrankError
from watchrank.workspace import Workspace

app = typer.Typer(
    help=__doc__,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"max_content_width": 110},
)
console = Console()

WorkspaceOption = Annotated[Path, typer.Option("--workspace", help="folder that the stages read and write")]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="YAML file of settings")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="one setting, as section.key=value; may be repeated")
]
RepoOption = Annotated[Path, typer.Option("--feature-repo", help="folder of the Feast definitions")]

ReleaseOption = Annotated[
    int | None, typer.Option("--release", help="number of the release; the last when not given")
]

HERE = Path("work")
ENDPOINT = "recommend"
FEATURE_REPO = Path("feature_repo")
TRITON_VENV = Path(".venv-triton")


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
        Path | None, typer.Option(help="folder of the log; <workspace>/log when not given")
    ] = None,
    source: Annotated[str, typer.Option(help="format of the log: own, kuairand or movielens")] = "own",
    workspace: WorkspaceOption = HERE,
    config: ConfigOption = None,
    override: SetOption = None,
) -> None:
    """Read a log into <workspace>/events: typed, deduplicated, by day; bad rows go to its quarantine."""
    from watchrank.ingestion import ingest

    place, settings = Workspace(workspace), Config.load(config, override)
    with console.status("ingesting"):
        report = ingest(data or place.log, source, place.events, settings.ingestion, settings.engine)
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
        materialise(open_store(feature_repo, place.features, place.feature_store), datetime.now(UTC))
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

    place = Workspace(workspace)
    store = open_store(feature_repo, place.features, place.feature_store)
    with console.status("joining impressions with their features"):
        build_ranking_dataset(place.events, store, place.dataset, Config.load(config, override).split)
    console.print(f"Dataset in {place.dataset}.")


@app.command()
def train(workspace: WorkspaceOption = HERE, config: ConfigOption = None, override: SetOption = None) -> None:
    """Train the ranking model into <workspace>/model; a run that was killed goes on where it stopped."""
    from watchrank.training.ranking import train_ranking

    place, settings = Workspace(workspace), Config.load(config, override)
    for line in train_ranking(place.dataset, place.model, settings.ranking, settings.training):
        console.print(str(line), highlight=False, soft_wrap=True)


@app.command()
def evaluate(workspace: WorkspaceOption = HERE) -> None:
    """Measure the model on the test window; write <workspace>/evaluation."""
    from watchrank.evaluation.evaluate import evaluate_ranking

    place = Workspace(workspace)
    truth = place.truth if place.truth.is_dir() else None
    with console.status("evaluating"):
        results = evaluate_ranking(place.model, place.dataset, place.evaluation, truth)
    console.print(metrics_table(results))
    console.print(f"Report: {place.evaluation / 'report.html'}")


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
    store = open_store(feature_repo, place.features, place.feature_store)
    with console.status("joining watches with what was known before them"):
        build_candidate_dataset(place.events, store, place.candidate_dataset, settings.examples)
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
    check_gates(results, settings.gates)


@app.command()
def study(
    name: Annotated[
        str,
        typer.Argument(
            help="hidden, inputs, objective or weighting of the ranker; depth, example_age or tied of "
            "candidate generation; diversity of the last release; all of the ranker when not given"
        ),
    ] = "",
    seeds: Annotated[int, typer.Option(min=1, help="trainings a variant")] = 3,
    workspace: WorkspaceOption = HERE,
    override: SetOption = None,
) -> None:
    """Compare variants of a model over seeds; write a table and a plot to <workspace>/studies."""
    from watchrank.studies import candidates, diversity, ranking
    from watchrank.studies.runs import Runs

    studies = ranking.STUDIES | candidates.STUDIES | diversity.STUDIES
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
def export(
    workspace: WorkspaceOption = HERE,
    feature_repo: RepoOption = FEATURE_REPO,
    config: ConfigOption = None,
    override: SetOption = None,
) -> None:
    """Export both models to ONNX, check parity, and make the next release in <workspace>/releases."""
    from watchrank.export.release import Trained, export_release
    from watchrank.feature_store import open_store

    place, settings = Workspace(workspace), Config.load(config, override)
    metrics = {
        "ranking": _read_metrics(place.evaluation, "evaluate"),
        "candidate_generation": _read_metrics(place.candidate_evaluation, "evaluate-candidates"),
    }
    trained = Trained(
        ranking=place.model,
        dataset=place.dataset,
        candidates=place.candidate_model,
        candidate_dataset=place.candidate_dataset,
    )
    store = open_store(feature_repo, place.features, place.feature_store)
    with console.status("exporting and checking parity"):
        release = export_release(trained, store, metrics, place.releases, settings.index, settings.export)
    console.print(f"Release {release}.")


@app.command()
def refresh(
    release: ReleaseOption = None,
    workspace: WorkspaceOption = HERE,
    feature_repo: RepoOption = FEATURE_REPO,
    config: ConfigOption = None,
    override: SetOption = None,
) -> None:
    """Make the next release out of an earlier one, with the videos' features of now; nothing is trained."""
    from watchrank.export.release import refresh_release
    from watchrank.feature_store import open_store

    place, settings = Workspace(workspace), Config.load(config, override)
    store = open_store(feature_repo, place.features, place.feature_store)
    with console.status("renewing the features of the videos"):
        made = refresh_release(
            _release(place, release), place.dataset, store, place.releases, settings.export
        )
    console.print(f"Release {made}.")


@app.command()
def releases(workspace: WorkspaceOption = HERE) -> None:
    """List the releases of <workspace>: when they were made, of which data, and which one serves."""
    from watchrank.deployment import model_repository
    from watchrank.releases import read_manifest, release_numbers

    place = Workspace(workspace)
    serving = model_repository.serving(place.model_repository, ENDPOINT)
    loaded = model_repository.releases(place.model_repository)
    table = Table("release", "created", "data until", "per-user loss", "recall@100", "state")
    for number in release_numbers(place.releases):
        manifest = read_manifest(place.releases / f"{number:06d}")
        models = {name: found["models"] for name, found in manifest["metrics"].items()}
        state = "serves" if number == serving else "loaded" if number in loaded else ""
        table.add_row(
            str(number),
            manifest["created"],
            manifest["data"]["test"]["until"],
            f"{models['ranking']['ranker']['per_user_loss']:.4f}",
            f"{models['candidate_generation']['tower']['recall@100']:.4f}",
            state,
        )
    console.print(table)


@app.command()
def deploy(
    release: ReleaseOption = None,
    switch: Annotated[bool, typer.Option(help="serve it; else it is loaded beside what serves")] = True,
    workspace: WorkspaceOption = HERE,
    config: ConfigOption = None,
    override: SetOption = None,
) -> None:
    """Load a release into the running Triton, smoke-test it, and let it serve."""
    from watchrank.deployment.deploy import deploy

    place, settings = Workspace(workspace), Config.load(config, override)
    folder = _release(place, release)
    console.print(deploy(folder, place.model_repository, _reached(place, settings), switch=switch))


@app.command()
def rollback(
    workspace: WorkspaceOption = HERE, config: ConfigOption = None, override: SetOption = None
) -> None:
    """Let the release before the one that serves answer again; `deploy --release` names another one."""
    from watchrank.deployment.deploy import deploy, release_before

    place, settings = Workspace(workspace), Config.load(config, override)
    folder = _release(place, release_before(place.model_repository, ENDPOINT))
    console.print(deploy(folder, place.model_repository, _reached(place, settings)))


@app.command()
def recommend(
    users: Annotated[list[int], typer.Argument(help="user ids")],
    k: Annotated[int, typer.Option(help="videos a user")] = 10,
    surface: Annotated[str | None, typer.Option(help="where they will be shown")] = None,
    exclude: Annotated[list[int] | None, typer.Option(help="a video not to answer; may be repeated")] = None,
    diversity: Annotated[float, typer.Option(help="0 (off) to 1: how unlike each other")] = 0.0,
    channel_limit: Annotated[int, typer.Option(help="most videos of one channel; 0: no limit")] = 0,
    workspace: WorkspaceOption = HERE,
    feature_repo: RepoOption = FEATURE_REPO,
    config: ConfigOption = None,
    override: SetOption = None,
) -> None:
    """Ask the running Triton for users' videos, ranked by expected watch seconds."""
    from watchrank.feature_store import open_store
    from watchrank.serving.recommend import Question, ask

    place, settings = Workspace(workspace), Config.load(config, override)
    store = open_store(feature_repo, place.features, place.feature_store)
    question = Question(
        k=k, surface=surface, excluded=exclude or [], diversity=diversity, channel_limit=channel_limit
    )
    for answer in asyncio.run(ask(store, settings.deployment, users, question)):
        table = Table("video", "expected watch, s", "candidate score")
        table.title = f"user {answer.user_id}, release {answer.release}"
        for video, seconds, score in zip(
            answer.video_ids, answer.expected_watch_seconds, answer.candidate_scores, strict=True
        ):
            table.add_row(str(video), f"{seconds:.1f}", f"{score:.2f}")
        console.print(table)


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


@app.command()
def serve(
    workspace: WorkspaceOption = HERE,
    triton_venv: Annotated[Path, typer.Option(help="environment of Triton")] = TRITON_VENV,
) -> None:
    """Keep a local Triton up on <workspace>/model_repository until Ctrl-C."""
    from watchrank.deployment.local_server import LocalTriton, Ports
    from watchrank.deployment.model_repository import endpoints, loaded

    place = Workspace(workspace)
    models = [*endpoints(place.model_repository), *loaded(place.model_repository)]
    if not models:
        raise InputError(f"{place.model_repository} holds no model. Run `make run` first.")
    with LocalTriton(
        venv=triton_venv, repository=place.model_repository, state=place.triton, ports=Ports(), models=models
    ) as server:
        console.print(
            _how_to_query(server.settings.http_url, server.settings.grpc_url, workspace),
            markup=False,
            soft_wrap=True,
        )
        try:
            server.wait()
        except KeyboardInterrupt:
            console.print("Stopped.")


@app.command()
def serve_http(
    workspace: WorkspaceOption = HERE,
    feature_repo: RepoOption = FEATURE_REPO,
    config: ConfigOption = None,
    override: SetOption = None,
) -> None:
    """Answer over HTTP, with a page to look at, until Ctrl-C; it asks the running Triton."""
    from watchrank.feature_store import open_store
    from watchrank.serving.http import create_app, listen, serve

    place, settings = Workspace(workspace), Config.load(config, override)
    store = open_store(feature_repo, place.features, place.feature_store)
    service = create_app(store, settings.deployment, settings.serving, place.request_log)
    with listen(settings.serving) as listener:
        url = f"http://{settings.serving.host}:{settings.serving.port}"
        console.print(f"{url}/ shows answers, {url}/recommend gives them. Ctrl-C stops it.", soft_wrap=True)
        serve(service, listener)


def metrics_table(results: dict[str, dict[str, dict[str, float]]]) -> Table:
    """Return the metrics of each model of an evaluation as a table."""
    models = results["models"]
    names = list(next(iter(models.values())))
    table = Table("model", *names)
    for model, values in sorted(models.items(), key=lambda item: item[0] not in ("ranker", "tower")):
        table.add_row(model, *(f"{values[name]:.4f}" for name in names))
    return table


def run(command: typer.Typer) -> None:
    """Run a command line; a known error is one sentence on stderr and its exit code."""
    logging.basicConfig(
        format="%(message)s",
        handlers=[RichHandler(console=Console(stderr=True), show_path=False)],
    )
    logging.getLogger("watchrank").setLevel(logging.INFO)
    try:
        command()
    except WatchrankError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def main() -> None:
    """Run `watchrank`."""
    run(app)


def _read_metrics(folder: Path, command: str) -> dict[str, object]:
    try:
        metrics: dict[str, object] = json.loads((folder / "metrics.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"Cannot read the metrics in {folder}: {error}. Run `watchrank {command}`."
        ) from None
    return metrics


def _reached(place: Workspace, settings: Config) -> DeploymentSettings:
    """Return how Triton is reached: with the key of the local one when no other is given."""
    key = place.triton / "admin_key"
    if settings.deployment.admin_key_file or not key.exists():
        return settings.deployment
    return settings.deployment.model_copy(update={"admin_key_file": key})


def _release(place: Workspace, number: int | None) -> Path:
    from watchrank.releases import release_numbers

    numbers = release_numbers(place.releases)
    if not numbers or (number or numbers[-1]) not in numbers:
        raise InputError(f"{place.releases} has no release {number or ''}. There are: {numbers or 'none'}.")
    return place.releases / f"{number or numbers[-1]:06d}"


def _how_to_query(http_url: str, grpc_url: str, workspace: Path) -> str:
    return f"""Triton is up: HTTP {http_url}, gRPC {grpc_url}. Ctrl-C stops it.
  watchrank recommend --workspace {workspace} <user id> ...      features from Feast, ranked by Triton
  curl {http_url}/v2/models/recommend                    the model's inputs and outputs
  curl {http_url}/v2/models/recommend/stats              how much it was asked"""
