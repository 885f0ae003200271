"""Components from trained models to a served release."""

from kfp.dsl import Dataset, Input, Markdown, Model, Output

from watchrank_components.image import component


@component
def export_release(
    ranking_model: Input[Model],
    dataset: Input[Dataset],
    ranking_results: Input[Dataset],
    candidate_model: Input[Model],
    candidate_dataset: Input[Dataset],
    candidate_results: Input[Dataset],
    text_model: Input[Model],
    search_dataset: Input[Dataset],
    text_results: Input[Dataset],
    store: Input[Dataset],
    workspace: str,
    release_store: str,
    feature_repo: str,
    index: dict,
    export: dict,
    release: Output[Model],
):
    """Export the models to ONNX, check parity, and make the next release.

    Args:
        ranking_model: of `train_ranking`.
        dataset: of `build_dataset`.
        ranking_results: of `evaluate_ranking`; kept in the release's manifest.
        candidate_model: of `train_candidates`.
        candidate_dataset: of `build_candidate_dataset`.
        candidate_results: of `evaluate_candidates`; kept in the release's manifest.
        text_model: of `train_text`; left out when its log has no searches.
        search_dataset: of `build_search_dataset`.
        text_results: of `evaluate_text`; kept in the release's manifest.
        store: of `build_features`; gives the videos' features.
        workspace: keeps the releases.
        release_store: where Tritons follow releases, whose numbers are not given again; empty for none.
        feature_repo: folder of the Feast definitions.
        index: settings of the search for candidates.
        export: settings of the export.
        release: the release, whole.
    """
    import json
    import shutil
    from pathlib import Path

    from watchrank.config import ExportSettings, IndexSettings, parse
    from watchrank.deployment.release_store import taken_numbers
    from watchrank.export.release import Trained, export_release
    from watchrank.feature_store import open_store
    from watchrank.workspace import Workspace

    place = Workspace(Path(workspace))
    found = {"ranking": ranking_results, "candidate_generation": candidate_results}
    models = {"ranking": ranking_model, "candidates": candidate_model}
    datasets = {"dataset": dataset, "candidate_dataset": candidate_dataset}
    if "absent" not in text_model.metadata:
        found["text_match"] = text_results
        models["text"], datasets["search_dataset"] = text_model, search_dataset
    folder = export_release(
        Trained(**{name: Path(artifact.path) for name, artifact in (models | datasets).items()}),
        open_store(Path(feature_repo), Path(store.metadata["folder"]), place.feature_store),
        {name: json.loads(Path(results.path).read_text()) for name, results in found.items()},
        place.releases,
        parse(IndexSettings, index, "index"),
        parse(ExportSettings, export, "export"),
        taken_numbers(release_store),
    )
    shutil.copytree(folder, release.path)
    release.metadata["folder"] = str(folder)


@component
def deploy_release(release: Input[Model], model_repository: str, release_store: str, deployment: dict) -> int:
    """Load the release into Triton beside what serves, smoke-test it, and switch to it.

    Args:
        release: of `export_release`.
        model_repository: what Triton serves from, a folder or s3://.
        release_store: where Tritons follow releases; empty where Triton is told directly.
        deployment: settings: where Triton listens.

    Returns:
        The number of the release that serves now.
    """
    from pathlib import Path

    from watchrank.config import DeploymentSettings, parse
    from watchrank.deployment.deploy import deploy
    from watchrank.deployment.release_store import ReleaseStore
    from watchrank.deployment.rollout import roll_out

    settings = parse(DeploymentSettings, deployment, "deployment")
    if release_store:
        store = ReleaseStore(release_store)
        return roll_out(Path(release.path), store, settings, settings.rollout_seconds)
    return deploy(Path(release.path), model_repository, settings).release


@component
def recommend(
    release: Input[Model],
    store: Input[Dataset],
    deployed: int,
    workspace: str,
    feature_repo: str,
    deployment: dict,
    recommendations: Output[Markdown],
):
    """Ask Triton for a few users' videos, to see the whole path work.

    Args:
        release: of `export_release`.
        store: of `build_features`.
        deployed: of `deploy_release`.
        workspace: holds Feast's registry and online store.
        feature_repo: folder of the Feast definitions.
        deployment: settings: where Triton listens.
        recommendations: the answers, as a table.
    """
    from pathlib import Path

    from watchrank.config import DeploymentSettings, parse
    from watchrank.feature_store import open_store
    from watchrank.serving.recommend import showcase
    from watchrank.workspace import Workspace

    state = Workspace(Path(workspace)).feature_store
    feast = open_store(Path(feature_repo), Path(store.metadata["folder"]), state)
    settings = parse(DeploymentSettings, deployment, "deployment")
    Path(recommendations.path).write_text(showcase(feast, Path(release.path), settings))


@component
def roll_back(
    workspace: str,
    model_repository: str,
    release_store: str,
    release: int,
    deployment: dict,
    summary: Output[Markdown],
) -> int:
    """Let an earlier release answer again.

    Args:
        workspace: keeps the releases.
        model_repository: what Triton serves from, a folder or s3://.
        release_store: where Tritons follow releases; empty where Triton is told directly.
        release: number of the release; 0 for the one before the one that serves.
        deployment: settings: where Triton listens.
        summary: what serves now, and what did before.

    Returns:
        The number of the release that serves now.
    """
    from pathlib import Path

    from watchrank.config import DeploymentSettings, parse
    from watchrank.deployment.rollback import roll_back
    from watchrank.workspace import Workspace

    settings = parse(DeploymentSettings, deployment, "deployment")
    releases = Workspace(Path(workspace)).releases
    before, now = roll_back(releases, model_repository, release_store or None, release or None, settings)
    Path(summary.path).write_text(f"Release **{now}** serves. Before it did release {before}.\n")
    return now
