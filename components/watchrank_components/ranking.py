"""Components of the ranker: train, evaluate."""

from kfp.dsl import HTML, Dataset, Input, Metrics, Model, Output

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
    for task, values in found.get("tasks", {}).items():
        for name, value in values.items():
            metrics.log_metric(f"{task}: {name}", value)
    for task, use in found.get("experts", {}).items():
        metrics.log_metric(f"{task}: entropy of the experts' use", use["entropy_of_use"])
    shutil.copy(folder / "metrics.json", results.path)
    shutil.copy(folder / "report.html", report.path)
