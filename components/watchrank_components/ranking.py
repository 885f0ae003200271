"""Components from a training set to a served release."""

from kfp.dsl import HTML, Dataset, Input, Markdown, Metrics, Model, Output

from watchrank_components.image import component


@component
def train_ranking(dataset: Input[Dataset], ranking: dict, training: dict, model: Output[Model]):
    """Train the watch-time ranker, on the GPU when there is one.

    Args:
        dataset: of `build_dataset`.
        ranking: settings of the architecture.
        training: settings of the run.
        model: configuration, weights and learning curve.
    """
    from pathlib import Path

    from watchrank.config import RankingSettings, TrainingSettings, parse
    from watchrank.training.ranking import train_ranking

    curve = train_ranking(
        Path(dataset.path),
        Path(model.path),
        parse(RankingSettings, ranking, "ranking"),
        parse(TrainingSettings, training, "training"),
    )
    model.metadata["epochs"] = len(curve)


@component
def evaluate_ranking(
    model: Input[Model],
    dataset: Input[Dataset],
    truth: str,
    metrics: Output[Metrics],
    results: Output[Dataset],
    report: Output[HTML],
):
    """Measure the model on the test window beside the baselines.

    Args:
        model: of `train_ranking`.
        dataset: of `build_dataset`.
        truth: folder of the true expected watch times of a simulated log, or empty.
        metrics: of the ranker.
        results: all metrics and tables, as JSON.
        report: the page with the plots.
    """
    import shutil
    from pathlib import Path

    from watchrank.evaluation.evaluate import evaluate_ranking

    folder = Path(results.path).parent / "evaluation"
    found = evaluate_ranking(Path(model.path), Path(dataset.path), folder, Path(truth) if truth else None)
    for name, value in found["models"]["ranker"].items():
        metrics.log_metric(name, value)
    shutil.copy(folder / "metrics.json", results.path)
    shutil.copy(folder / "report.html", report.path)


@component
def export_release(
    model: Input[Model],
    dataset: Input[Dataset],
    results: Input[Dataset],
    workspace: str,
    export: dict,
    release: Output[Model],
):
    """Export to ONNX, check parity with the trained model, and make the next release.

    Args:
        model: of `train_ranking`.
        dataset: of `build_dataset`.
        results: of `evaluate_ranking`; kept in the release's manifest.
        workspace: keeps the releases.
        export: settings of the export.
        release: the release, whole.
    """
    import json
    import shutil
    from pathlib import Path

    from watchrank.config import ExportSettings, parse
    from watchrank.export.release import export_release
    from watchrank.workspace import Workspace

    metrics = json.loads(Path(results.path).read_text())
    releases = Workspace(Path(workspace)).releases
    settings = parse(ExportSettings, export, "export")
    folder = export_release(Path(model.path), Path(dataset.path), metrics, releases, settings)
    shutil.copytree(folder, release.path)
    release.metadata["folder"] = str(folder)


@component
def deploy_release(release: Input[Model], model_repository: str, deployment: dict) -> int:
    """Load the release into Triton, smoke-test it, and let it serve.

    Args:
        release: of `export_release`.
        model_repository: what Triton serves from.
        deployment: settings: where Triton listens.

    Returns:
        The version of the ranking model that serves now.
    """
    from pathlib import Path

    from watchrank.config import DeploymentSettings, parse
    from watchrank.deployment.deploy import deploy

    settings = parse(DeploymentSettings, deployment, "deployment")
    return deploy(Path(release.path), Path(model_repository), settings).version


@component
def recommend(
    release: Input[Model],
    store: Input[Dataset],
    version: int,
    workspace: str,
    feature_repo: str,
    deployment: dict,
    recommendations: Output[Markdown],
):
    """Ask Triton for a few users' videos, to see the whole path work.

    Args:
        release: of `export_release`.
        store: of `build_features`.
        version: of `deploy_release`.
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
