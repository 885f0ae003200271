"""Components of candidate generation: choose examples, train, evaluate and hold against the baselines."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from watchrank_components.image import component


@component
def build_candidate_dataset(
    events: Input[Dataset],
    store: Input[Dataset],
    workspace: str,
    feature_repo: str,
    examples: dict,
    dataset: Output[Dataset],
):
    """Choose the watches to predict and join each with what was known of its user before it.

    Args:
        events: of `ingest`.
        store: of `build_features`.
        workspace: holds Feast's registry.
        feature_repo: folder of the Feast definitions.
        examples: settings: which watches are examples.
        dataset: memory-mappable columns by split.
    """
    from pathlib import Path

    from watchrank.config import ExampleSettings, parse
    from watchrank.datasets.candidates import build_candidate_dataset
    from watchrank.feature_store import open_store
    from watchrank.workspace import Workspace

    state = Workspace(Path(workspace)).feature_store
    feast = open_store(Path(feature_repo), Path(store.metadata["folder"]), state)
    settings = parse(ExampleSettings, examples, "examples")
    build_candidate_dataset(Path(events.metadata["folder"]), feast, Path(dataset.path), settings)


@component
def train_candidates(
    dataset: Input[Dataset], candidates: dict, candidate_training: dict, model: Output[Model]
):
    """Train the user tower and the videos' vectors, on the GPU when there is one.

    Args:
        dataset: of `build_candidate_dataset`.
        candidates: settings of the architecture.
        candidate_training: settings of the run.
        model: configuration, weights and learning curve.
    """
    from pathlib import Path

    from watchrank.config import CandidateSettings, CandidateTrainingSettings, parse
    from watchrank.training.candidate_generation import train_candidates

    curve = train_candidates(
        Path(dataset.path),
        Path(model.path),
        parse(CandidateSettings, candidates, "candidates"),
        parse(CandidateTrainingSettings, candidate_training, "candidate_training"),
    )
    model.metadata["epochs"] = len(curve)


@component
def evaluate_candidates(
    model: Input[Model],
    dataset: Input[Dataset],
    gates: dict,
    metrics: Output[Metrics],
    results: Output[Dataset],
):
    """Rank the whole catalogue for each user's held-out watch; fail when a baseline is as good.

    Args:
        model: of `train_candidates`.
        dataset: of `build_candidate_dataset`.
        gates: settings: what must be beaten.
        metrics: of the model.
        results: the metrics of the model and of the baselines, as JSON.
    """
    import shutil
    from pathlib import Path

    from watchrank.config import GateSettings, parse
    from watchrank.evaluation.candidates import check_gates, evaluate_candidates

    folder = Path(results.path).parent / "evaluation"
    found = evaluate_candidates(Path(model.path), Path(dataset.path), folder)
    for name, value in found["models"]["tower"].items():
        metrics.log_metric(name, value)
    shutil.copy(folder / "metrics.json", results.path)
    check_gates(found, parse(GateSettings, gates, "gates"))
