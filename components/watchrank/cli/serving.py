"""Commands that answer: recommendations, searches, servers."""

import asyncio
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from watchrank.cli.app import (
    FEATURE_REPO,
    HERE,
    TRITON_VENV,
    ConfigOption,
    RepoOption,
    SetOption,
    WorkspaceOption,
    app,
    console,
)
from watchrank.config import Config
from watchrank.errors import InputError
from watchrank.workspace import Workspace

if TYPE_CHECKING:
    from watchrank.serving.question import Recommendation


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


def _how_to_query(http_url: str, grpc_url: str, workspace: Path) -> str:
    return f"""Triton is up: HTTP {http_url}, gRPC {grpc_url}. Ctrl-C stops it.
  watchrank recommend --workspace {workspace} <user id> ...      features from Feast, ranked by Triton
  curl {http_url}/v2/models/recommend                    the model's inputs and outputs
  curl {http_url}/v2/models/recommend/stats              how much it was asked"""
