"""Commands from trained models to answers: releases, deployment, servers."""

import asyncio
import json
import signal
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from watchrank.cli.app import (
    ENDPOINT,
    FEATURE_REPO,
    HERE,
    TRITON_VENV,
    ConfigOption,
    MaybeStoreOption,
    NumberingOption,
    ReleaseOption,
    RepoOption,
    RepositoryOption,
    SetOption,
    StoreOption,
    WorkspaceOption,
    app,
    console,
)
from watchrank.config import Config, DeploymentSettings
from watchrank.errors import InputError
from watchrank.workspace import Workspace

if TYPE_CHECKING:
    from watchrank.deployment.release_store import ReleaseStore
    from watchrank.serving.question import Recommendation


@app.command()
def export(
    store: NumberingOption = None,
    workspace: WorkspaceOption = HERE,
    feature_repo: RepoOption = FEATURE_REPO,
    config: ConfigOption = None,
    override: SetOption = None,
) -> None:
    """Export the models to ONNX, check parity, and make the next release in <workspace>/releases.

    Text matching is part of it when there is a <workspace>/text_model.
    """
    from watchrank.deployment.release_store import taken_numbers
    from watchrank.export.release import Trained, export_release
    from watchrank.feature_store import open_store

    place, settings = Workspace(workspace), Config.load(config, override)
    metrics = {
        "ranking": _read_metrics(place.evaluation, "evaluate"),
        "candidate_generation": _read_metrics(place.candidate_evaluation, "evaluate-candidates"),
    }
    with_search = place.text_model.is_dir()
    if with_search:
        metrics["text_match"] = _read_metrics(place.text_evaluation, "evaluate-text")
    trained = Trained(
        ranking=place.model,
        dataset=place.dataset,
        candidates=place.candidate_model,
        candidate_dataset=place.candidate_dataset,
        text=place.text_model if with_search else None,
        search_dataset=place.search_dataset if with_search else None,
    )
    feast = open_store(feature_repo, place.features, place.feature_store)
    taken = taken_numbers(store)
    with console.status("exporting and checking parity"):
        release = export_release(
            trained, feast, metrics, place.releases, settings.index, settings.export, taken
        )
    console.print(f"Release {release}.")


@app.command()
def refresh(
    release: ReleaseOption = None,
    store: NumberingOption = None,
    workspace: WorkspaceOption = HERE,
    feature_repo: RepoOption = FEATURE_REPO,
    config: ConfigOption = None,
    override: SetOption = None,
) -> None:
    """Make the next release out of an earlier one, with the videos' features of now; nothing is trained."""
    from watchrank.deployment.release_store import taken_numbers
    from watchrank.export.release import refresh_release
    from watchrank.feature_store import open_store

    place, settings = Workspace(workspace), Config.load(config, override)
    feast, earlier = open_store(feature_repo, place.features, place.feature_store), _release(place, release)
    taken = taken_numbers(store)
    with console.status("renewing the features of the videos"):
        made = refresh_release(earlier, feast, place.releases, settings.export, taken)
    console.print(f"Release {made}.")


@app.command()
def releases(
    workspace: WorkspaceOption = HERE,
    store: MaybeStoreOption = None,
    model_repository: RepositoryOption = None,
) -> None:
    """List the releases of <workspace> or of a store: when made, of which data, and which one serves."""
    table = Table("release", "created", "data until", "per-user loss", "recall@100", "state")
    found = _listed(Workspace(workspace), model_repository) if store is None else _listed_in(store)
    for manifest, state in found:
        metrics = manifest["metrics"]
        table.add_row(
            str(manifest["release"]),
            manifest["created"],
            manifest["data"]["test"]["until"],
            f"{metrics['ranking']['models']['ranker']['per_user_loss']:.4f}",
            f"{metrics['candidate_generation']['models']['tower']['recall@100']:.4f}",
            state,
        )
    console.print(table)


@app.command()
def deploy(
    release: ReleaseOption = None,
    switch: Annotated[bool, typer.Option(help="serve it; else it is loaded beside what serves")] = True,
    model_repository: RepositoryOption = None,
    workspace: WorkspaceOption = HERE,
    config: ConfigOption = None,
    override: SetOption = None,
) -> None:
    """Load a release into the running Triton, smoke-test it, and let it serve."""
    from watchrank.deployment.deploy import deploy

    place, settings = Workspace(workspace), Config.load(config, override)
    repository = model_repository or place.model_repository
    console.print(deploy(_release(place, release), repository, _reached(place, settings), switch=switch))


@app.command()
def push(
    store: StoreOption,
    release: ReleaseOption = None,
    serve: Annotated[bool, typer.Option(help="name it as the one to serve; else it is only stored")] = True,
    workspace: WorkspaceOption = HERE,
) -> None:
    """Put a release of <workspace> into a release store, for every Triton that follows it."""
    from watchrank.deployment.release_store import ReleaseStore

    there = ReleaseStore(store)
    with console.status("pushing"):
        number = there.push(_release(Workspace(workspace), release))
    if serve:
        there.serve(number)
    _print_pointer(there)


@app.command()
def follow(
    store: StoreOption,
    once: Annotated[
        bool, typer.Option("--once", help="look once; fail when that release is refused")
    ] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="seconds from one look to the next")] = 10,
    workspace: WorkspaceOption = HERE,
    config: ConfigOption = None,
    override: SetOption = None,
) -> None:
    """Let the running Triton serve the release that a store names; look again and again until Ctrl-C."""
    from watchrank.deployment.follow import follow, follow_once
    from watchrank.deployment.release_store import ReleaseStore

    place, settings = Workspace(workspace), Config.load(config, override)
    there, reached = ReleaseStore(store), _reached(place, settings)
    if once:
        done = follow_once(there, place.pulled, place.model_repository, reached)
        console.print(done or f"Release {there.serving()} serves already.")
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        follow(there, place.pulled, place.model_repository, reached, interval, Event())
    except KeyboardInterrupt:
        console.print("Stopped.")


@app.command()
def rollback(
    store: MaybeStoreOption = None,
    model_repository: RepositoryOption = None,
    workspace: WorkspaceOption = HERE,
    config: ConfigOption = None,
    override: SetOption = None,
) -> None:
    """Let the release before the one that serves answer again, here or wherever a store is followed.

    `deploy --release` and `push --release` name another one.
    """
    if store is not None:
        from watchrank.deployment.release_store import ReleaseStore

        there = ReleaseStore(store)
        there.serve(there.release_before())
        _print_pointer(there)
        return
    from watchrank.deployment.rollback import roll_back

    place, settings = Workspace(workspace), Config.load(config, override)
    repository = model_repository or place.model_repository
    before, now = roll_back(place.releases, repository, None, None, _reached(place, settings))
    console.print(f"Release {now} serves. Before it did release {before}.")


@app.command()
def recommend(
    users: Annotated[list[int], typer.Argument(help="user ids")],
    k: Annotated[int, typer.Option(help="videos a user")] = 10,
    surface: Annotated[str | None, typer.Option(help="where they will be shown")] = None,
    exclude: Annotated[list[int] | None, typer.Option(help="a video not to answer; may be repeated")] = None,
    diversity: Annotated[float, typer.Option(help="0 (off) to 1: how unlike each other")] = 0.0,
    channel_limit: Annotated[int, typer.Option(help="most videos of one channel; 0: no limit")] = 0,
    weight: Annotated[
        list[str] | None,
        typer.Option(help="task=number: what a unit of its answer is worth in the score; may be repeated"),
    ] = None,
    workspace: WorkspaceOption = HERE,
    feature_repo: RepoOption = FEATURE_REPO,
    config: ConfigOption = None,
    override: SetOption = None,
) -> None:
    """Ask the running Triton for users' videos, ranked by expected watch seconds."""
    from watchrank.feature_store import open_store
    from watchrank.serving.popular import PopularVideos
    from watchrank.serving.question import Question
    from watchrank.serving.recommend import ask

    place, settings = Workspace(workspace), Config.load(config, override)
    store = open_store(feature_repo, place.features, place.feature_store)
    question = Question(
        k=k,
        surface=surface,
        excluded=exclude or [],
        diversity=diversity,
        channel_limit=channel_limit,
        score_weights=dict(map(_weight, weight or [])),
    )
    popular = PopularVideos.of(place)
    for answer in asyncio.run(ask(store, settings.deployment, users, question, popular)):
        console.print(_answer_table(answer))


@app.command()
def search(
    queries: Annotated[list[str], typer.Argument(help="what users type; quote one of several words")],
    k: Annotated[int, typer.Option(help="videos a query")] = 10,
    config: ConfigOption = None,
    override: SetOption = None,
) -> None:
    """Ask the running Triton for the videos whose titles match queries best."""
    from watchrank.serving.search import ask

    for found in asyncio.run(ask(Config.load(config, override).deployment, queries, k)):
        table = Table("video", "cosine", title=found.query)
        for video, score in zip(found.video_ids, found.scores, strict=True):
            table.add_row(str(video), f"{score:.3f}")
        console.print(table)


@app.command()
def serve(
    workspace: WorkspaceOption = HERE,
    triton_venv: Annotated[Path, typer.Option(help="environment of Triton")] = TRITON_VENV,
) -> None:
    """Keep a local Triton up on <workspace>/model_repository until Ctrl-C."""
    from watchrank.deployment.local_server import LocalTriton, Ports
    from watchrank.deployment.model_repository import check, endpoints, loaded

    place = Workspace(workspace)
    models = [*endpoints(place.model_repository), *loaded(place.model_repository)]
    if not models:
        raise InputError(f"{place.model_repository} holds no model. Run `make run` first.")
    check(place.model_repository, [place.releases, place.pulled])
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
    from watchrank.serving.popular import PopularVideos

    place, settings = Workspace(workspace), Config.load(config, override)
    store = open_store(feature_repo, place.features, place.feature_store)
    service = create_app(
        store, settings.deployment, settings.serving, place.request_log, PopularVideos.of(place)
    )
    with listen(settings.serving) as listener:
        url = f"http://{settings.serving.host}:{settings.serving.port}"
        console.print(f"{url}/ shows answers, {url}/recommend gives them. Ctrl-C stops it.", soft_wrap=True)
        serve(service, listener)


def _answer_table(answer: "Recommendation") -> Table:
    lacking = {
        None: "",
        "features": ", of whom nothing is known: as for a newcomer",
        "triton": "; Triton does not answer: the most watched",
    }
    table = Table("video", "expected watch, s", "candidate score", *answer.answers)
    table.title = f"user {answer.user_id}, release {answer.release}{lacking[answer.fallback]}"
    columns = (answer.expected_watch_seconds, answer.candidate_scores, *answer.answers.values())
    for video, seconds, *others in zip_longest(answer.video_ids, *columns):
        table.add_row(
            str(video),
            "" if seconds is None else f"{seconds:.1f}",
            *("" if value is None else f"{value:.4g}" for value in others),
        )
    return table


def _weight(text: str) -> tuple[str, float]:
    task, _, number = text.partition("=")
    try:
        return task, float(number)
    except ValueError:
        raise InputError(f"Cannot read the weight {text!r}. Write task=number.") from None


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
    if not numbers:
        raise InputError(f"{place.releases} has no release; run `watchrank export` first.")
    if (number or numbers[-1]) not in numbers:
        raise InputError(f"{place.releases} has no release {number}; give one of {numbers}.")
    return place.releases / f"{number or numbers[-1]:06d}"


def _listed(place: Workspace, repository: str | None) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the manifest and the state of each release of a workspace."""
    from watchrank.deployment import model_repository
    from watchrank.releases import read_manifest, release_numbers

    serving = model_repository.serving(repository or place.model_repository, ENDPOINT)
    loaded = model_repository.releases(repository or place.model_repository)
    for number in release_numbers(place.releases):
        state = "serves" if number == serving else "loaded" if number in loaded else ""
        yield read_manifest(place.releases / f"{number:06d}"), state


def _listed_in(url: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the manifest and the state of each release of a store."""
    from watchrank.deployment.release_store import ReleaseStore

    there = ReleaseStore(url)
    serving = there.serving()
    for number in there.numbers():
        yield there.manifest(number), "serves" if number == serving else ""


def _print_pointer(store: "ReleaseStore") -> None:
    console.print(f"{store.url} names release {store.serving() or 'none'} to serve.", soft_wrap=True)


def _how_to_query(http_url: str, grpc_url: str, workspace: Path) -> str:
    return f"""Triton is up: HTTP {http_url}, gRPC {grpc_url}. Ctrl-C stops it.
  watchrank recommend --workspace {workspace} <user id> ...      features from Feast, ranked by Triton
  curl {http_url}/v2/models/recommend                    the model's inputs and outputs
  curl {http_url}/v2/models/recommend/stats              how much it was asked"""
