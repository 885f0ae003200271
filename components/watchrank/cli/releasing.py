"""Commands around releases: exported, deployed, followed, rolled back."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from watchrank.cli.app import (
    ENDPOINT,
    FEATURE_REPO,
    HERE,
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
