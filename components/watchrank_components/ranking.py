"""Components of the ranker: train, evaluate."""

from kfp.dsl import HTML, ClassificationMetrics, Dataset, Input, Markdown, Metrics, Model, Output

from watchrank_components.image import component


@component
def train_ranking(
    dataset: Input[Dataset],
    kind: str,
    ranking: dict,
    training: dict,
    launch: dict,
    start: str,
    model: Output[Model],
):
    """Train the ranker, on the GPU when there is one, on as many nodes as the settings say.

    Args:
        dataset: of `build_dataset`.
        kind: ranking for watch time alone; share_bottom, omoe or mmoe for several tasks.
        ranking: the other settings of the architecture.
        training: settings of the run.
        launch: settings: on how many processes and nodes.
        start: folder of the release whose weights it starts from; empty for none.
        model: configuration, weights and learning curve.
    """
    from pathlib import Path

    from watchrank.config import LaunchSettings, RankingSettings, TrainingSettings, parse
    from watchrank.export.made_of import trained_model
    from watchrank.training.jobs import RankingJob
    from watchrank.training.launch import launch as launch_job

    job = RankingJob(
        dataset=Path(dataset.path),
        output=Path(model.path),
        warm_start=trained_model(start, "ranking"),
        settings=parse(RankingSettings, ranking | {"model": kind}, "ranking"),
        training=parse(TrainingSettings, training, "training"),
    )
    curve = launch_job(job, parse(LaunchSettings, launch, "launch"))
    model.metadata["epochs"] = len(curve)


@component
def evaluate_ranking(
    model: Input[Model],
    dataset: Input[Dataset],
    truth: str,
    workspace: str,
    model_repository: str,
    release_store: str,
    gates: dict,
    metrics: Output[Metrics],
    roc: Output[ClassificationMetrics],
    results: Output[Dataset],
    report: Output[HTML],
    gate: Output[Markdown],
):
    """Measure the model on the test window; fail when it is worse than what serves or than its baselines.

    Args:
        model: of `train_ranking`.
        dataset: of `build_dataset`.
        truth: folder of the true expected watch times of a simulated log, or empty.
        workspace: keeps the releases.
        model_repository: what Triton serves from: the champion.
        release_store: where Tritons follow releases; empty where Triton is told directly.
        gates: settings: by how much the model may be worse.
        metrics: of the ranker.
        roc: how the expected watch time tells clicks, as a curve.
        results: all metrics and tables, as JSON.
        report: the page with the plots.
        gate: the decision, with each comparison.
    """
    import shutil
    from pathlib import Path

    from watchrank.config import GateSettings, parse
    from watchrank.deployment.rollout import serving_release
    from watchrank.evaluation.evaluate import evaluate_ranking, named_metrics
    from watchrank.evaluation.gate import gate_ranking
    from watchrank.workspace import Workspace

    trained, data = Path(model.path), Path(dataset.path)
    folder = Path(results.path).parent / "evaluation"
    found = evaluate_ranking(trained, data, folder, Path(truth) if truth else None)
    for name, value in named_metrics(found).items():
        metrics.log_metric(name, value)
    roc.log_roc_curve(*found["roc"])
    releases = Workspace(Path(workspace)).releases
    champion = serving_release(releases, model_repository, release_store)
    decision = gate_ranking(trained, data, champion, folder, parse(GateSettings, gates, "gates"))
    for file, artifact in {"metrics.json": results, "report.html": report, "gate.md": gate}.items():
        shutil.copy(folder / file, artifact.path)
    gate.metadata["passed"] = decision.passed
    decision.require()
