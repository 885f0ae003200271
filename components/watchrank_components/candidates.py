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
    split: dict,
    engine: dict,
    dataset: Output[Dataset],
):
    """Choose the watches to predict and join each with what was known of its user before it.

    Args:
        events: of `ingest`.
        store: of `build_features`.
        workspace: holds Feast's registry.
        feature_repo: folder of the Feast definitions.
        examples: settings: which watches are examples.
        split: settings: the window.
        engine: settings of the engine: memory and threads.
        dataset: memory-mappable columns by split.
    """
    from pathlib import Path

    from watchrank.config import EngineSettings, ExampleSettings, SplitSettings, parse
    from watchrank.datasets.candidates import build_candidate_dataset
    from watchrank.feature_store import open_store
    from watchrank.workspace import Workspace

    state = Workspace(Path(workspace)).feature_store
    limits = parse(EngineSettings, engine, "engine")
    feast = open_store(Path(feature_repo), Path(store.metadata["folder"]), state, limits)
    settings, window = parse(ExampleSettings, examples, "examples"), parse(SplitSettings, split, "split")
    build_candidate_dataset(Path(events.metadata["folder"]), feast, Path(dataset.path), settings, window)


@component
def train_candidates(
    dataset: Input[Dataset],
    candidates: dict,
    candidate_training: dict,
    launch: dict,
    start: str,
    model: Output[Model],
):
    """Train the user tower and the videos' vectors, on the GPU when there is one.

    Args:
        dataset: of `build_candidate_dataset`.
        candidates: settings of the architecture.
        candidate_training: settings of the run.
        launch: settings: on how many processes and nodes.
        start: folder of the release whose weights it starts from; empty for none.
        model: configuration, weights and learning curve.
    """
    from pathlib import Path

    from watchrank.config import CandidateSettings, CandidateTrainingSettings, LaunchSettings, parse
    from watchrank.export.made_of import trained_model
    from watchrank.training.jobs import CandidatesJob
    from watchrank.training.launch import launch as launch_job

    job = CandidatesJob(
        dataset=Path(dataset.path),
        output=Path(model.path),
        warm_start=trained_model(start, "candidate_generation"),
        settings=parse(CandidateSettings, candidates, "candidates"),
        training=parse(CandidateTrainingSettings, candidate_training, "candidate_training"),
    )
    curve = launch_job(job, parse(LaunchSettings, launch, "launch"))
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
