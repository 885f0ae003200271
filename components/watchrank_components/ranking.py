"""Components of the ranker: train, evaluate."""

from kfp.dsl import HTML, ClassificationMetrics, Dataset, Input, Markdown, Metrics, Model, Output

from watchrank_components.image import component


@component
def train_ranking(dataset: Input[Dataset], kind: str, ranking: dict, training: dict, model: Output[Model]):
    """Train the ranker, on the GPU when there is one.

    Args:
        dataset: of `build_dataset`.
        kind: ranking for watch time alone; share_bottom, omoe or mmoe for several tasks.
        ranking: the other settings of the architecture.
        training: settings of the run.
        model: configuration, weights and learning curve.
    """
    from pathlib import Path

    from watchrank.config import RankingSettings, TrainingSettings, parse
    from watchrank.training.ranking import train_ranking

    curve = train_ranking(
        Path(dataset.path),
        Path(model.path),
        parse(RankingSettings, ranking | {"model": kind}, "ranking"),
        parse(TrainingSettings, training, "training"),
    )
    model.metadata["epochs"] = len(curve)


@component
def evaluate_ranking(
    model: Input[Model],
    dataset: Input[Dataset],
    truth: str,
    workspace: str,
    model_repository: str,
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
    from watchrank.deployment.model_repository import serving
    from watchrank.evaluation.evaluate import evaluate_ranking, named_metrics
    from watchrank.evaluation.gate import gate_ranking
    from watchrank.workspace import Workspace

    trained, data = Path(model.path), Path(dataset.path)
    folder = Path(results.path).parent / "evaluation"
    found = evaluate_ranking(trained, data, folder, Path(truth) if truth else None)
    for name, value in named_metrics(found).items():
        metrics.log_metric(name, value)
    roc.log_roc_curve(*found["roc"])
    champion = Workspace(Path(workspace)).release(serving(Path(model_repository), "ranking"))
    decision = gate_ranking(trained, data, champion, folder, parse(GateSettings, gates, "gates"))
    for file, artifact in {"metrics.json": results, "report.html": report, "gate.md": gate}.items():
        shutil.copy(folder / file, artifact.path)
    gate.metadata["passed"] = decision.passed
    decision.require()
