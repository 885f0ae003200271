"""Components of text matching: choose examples, train, evaluate.

A log without searches or titles does without: each artifact then has `absent` in its metadata, which says
what the log lacks, and holds nothing else.
"""

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from watchrank_components.image import component


@component
def build_search_dataset(
    events: Input[Dataset], text: dict, split: dict, engine: dict, dataset: Output[Dataset]
):
    """Choose the searches that led to a watch; read them and all titles.

    Args:
        events: of `ingest`.
        text: settings: which searches are examples and how texts are read.
        split: settings: which days train, validate and test.
        engine: settings of the engine: memory and threads.
        dataset: memory-mappable columns by split; `absent` in its metadata when the log has no searches.
    """
    from pathlib import Path

    from watchrank.config import EngineSettings, SplitSettings, TextSettings, parse
    from watchrank.datasets.searches import build_search_dataset
    from watchrank.errors import AbsentError

    windows = parse(SplitSettings, split, "split")
    settings, limits = parse(TextSettings, text, "text"), parse(EngineSettings, engine, "engine")
    try:
        build_search_dataset(Path(events.metadata["folder"]), Path(dataset.path), settings, windows, limits)
    except AbsentError as error:
        print(f"Text matching is left out. {error}")
        Path(dataset.path).mkdir()
        dataset.metadata["absent"] = str(error)


@component
def train_text(
    dataset: Input[Dataset], text: dict, text_training: dict, launch: dict, start: str, model: Output[Model]
):
    """Train the towers of queries and titles, on the GPU when there is one.

    Args:
        dataset: of `build_search_dataset`.
        text: settings of the architecture and the loss.
        text_training: settings of the run.
        launch: settings: on how many processes and nodes.
        start: folder of the release whose weights it starts from; empty for none.
        model: configuration, weights and learning curve; `absent` in its metadata when the dataset has it.
    """
    from pathlib import Path

    from watchrank.config import LaunchSettings, TextSettings, TextTrainingSettings, parse
    from watchrank.export.made_of import trained_model
    from watchrank.training.jobs import TextJob
    from watchrank.training.launch import launch as launch_job

    if "absent" in dataset.metadata:
        Path(model.path).mkdir()
        model.metadata["absent"] = dataset.metadata["absent"]
        return
    job = TextJob(
        dataset=Path(dataset.path),
        output=Path(model.path),
        warm_start=trained_model(start, "text_match"),
        settings=parse(TextSettings, text, "text"),
        training=parse(TextTrainingSettings, text_training, "text_training"),
    )
    curve = launch_job(job, parse(LaunchSettings, launch, "launch"))
    model.metadata["epochs"] = len(curve)


@component
def evaluate_text(
    model: Input[Model], dataset: Input[Dataset], metrics: Output[Metrics], results: Output[Dataset]
):
    """Rank all titles for each search of the test window.

    Args:
        model: of `train_text`.
        dataset: of `build_search_dataset`.
        metrics: of the model; none when the dataset is absent.
        results: the metrics of the model and of popularity, as JSON; what is lacking when it is absent.
    """
    import shutil
    from pathlib import Path

    from watchrank.evaluation.text import evaluate_text
    from watchrank.storage import write_json

    if "absent" in dataset.metadata:
        write_json(Path(results.path), {"absent": dataset.metadata["absent"]})
        return
    folder = Path(results.path).parent / "evaluation"
    found = evaluate_text(Path(model.path), Path(dataset.path), folder)
    for name, value in found["models"]["tower"].items():
        metrics.log_metric(name, value)
    shutil.copy(folder / "metrics.json", results.path)
