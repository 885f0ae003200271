"""The study of the ranker's tasks: each learned together with the others, by structure, and alone."""

import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from matplotlib.axes import Axes

from watchrank.config import Config, TaskSettings
from watchrank.datasets.ranking import RankingDataset
from watchrank.evaluation.evaluate import expert_use, predict_tasks, score, score_task
from watchrank.evaluation.page import BLUE, GREEN, GREY, ORANGE, svg
from watchrank.storage import write_json
from watchrank.studies.runs import Estimate, Overrides, Run, Runs, Study, Task
from watchrank.training.fit import run_key
from watchrank.training.ranking import load_model, train_ranking
from watchrank.workspace import Workspace

STRUCTURES = ("share_bottom", "omoe", "mmoe")
ALONE = "alone"
"""A model for each task: the shared bottom with one tower."""

METRICS = {
    "binary": ("auc", "log_loss"),
    "watch_time": ("per_user_loss", "xauc"),
    "regression": ("rmse", "mae"),
}
"""By kind of task: what is plotted, and what stands beside it in the table."""


def tasks(runs: Runs) -> Study:
    """Each task of `ranking.tasks`, together by each structure and alone."""
    wanted = Config.load(overrides=list(runs.overrides)).ranking.tasks
    together: Overrides = {name: [f"ranking.model={name}"] for name in STRUCTURES}
    alone: Overrides = {task.name: ["ranking.model=share_bottom", _only(task)] for task in wanted}
    found, single = runs.of(together, TASKS), runs.of(alone, TASKS)
    figures = {
        task.name: {
            variant: [_of(run, task.name) for run in of_variant]
            for variant, of_variant in {ALONE: single[task.name], **found}.items()
        }
        for task in wanted
    }
    rows = [
        {"task": task.name, "model": variant, **_row(task, of_variant)}
        for task in wanted
        for variant, of_variant in figures[task.name].items()
    ]
    for row in rows:
        row["entropy of the experts' use"] = _entropy(found.get(row["model"], []), row["task"])
    plots = [
        svg(f"{task.name}: {METRICS[task.kind][0]}", partial(_compare, task, figures[task.name]))
        for task in wanted
    ]
    return Study(
        "Tasks together and alone",
        "Each task by the structures that share what is learned, and by a model of its own.",
        rows,
        runs.note
        + " Alone: a shared bottom with one tower. Entropy as a share of the greatest there can be.",
        plots,
    )


STUDIES: dict[str, Callable[[Runs], Study]] = {"tasks": tasks}


def _key(place: Workspace, config: Config) -> str:
    manifest = RankingDataset.open(place.dataset).manifest
    return run_key({"tasks": manifest}, config.ranking, config.training)


def _train(place: Workspace, config: Config, folder: Path) -> None:
    """Train a ranker; keep the metrics of each task and the use of the experts."""
    test = RankingDataset.open(place.dataset).split("test")
    with tempfile.TemporaryDirectory() as scratch:
        train_ranking(place.dataset, Path(scratch) / "model", config.ranking, config.training)
        model = load_model(Path(scratch) / "model")
    answers = predict_tasks(model, test)
    metrics = {}
    for task in model.tasks:
        metrics[task.name] = score_task(task, test, answers[task.name])
        if task.kind == "watch_time":
            metrics[task.name] |= score(test, answers[task.name])
    write_json(folder / "metrics.json", metrics)
    write_json(folder / "experts.json", expert_use(model, test) or {})


TASKS = Task("training", _key, _train)


def _only(task: TaskSettings) -> str:
    return f"ranking.tasks={json.dumps([task.model_dump()])}"


def _of(run: Run, task: str) -> dict[str, float]:
    found: dict[str, float] = run.read("metrics")[task]
    return found


def _row(task: TaskSettings, figures: list[dict[str, float]]) -> dict[str, str]:
    shown = ("auc ↑", "log_loss ↓", "per_user_loss ↓", "xauc ↑", "rmse ↓", "sum_ratio → 1")
    row = {}
    for column in shown:
        name = column.split()[0]
        known = name in figures[0] and (name in METRICS[task.kind] or name == "sum_ratio")
        row[column] = f"{Estimate.of(found[name] for found in figures):.4f}" if known else "–"
    return row


def _entropy(runs: list[Run], task: str) -> str:
    use = [run.read("experts").get(task) for run in runs]
    return f"{Estimate.of(found['entropy_of_use'] for found in use):.2f}" if all(use) and use else "–"


def _compare(task: TaskSettings, figures: dict[str, list[dict[str, float]]], axes: Axes) -> None:
    metric = METRICS[task.kind][0]
    for (variant, found), colour in zip(figures.items(), (GREY, BLUE, ORANGE, GREEN), strict=True):
        estimate = Estimate.of(figure[metric] for figure in found)
        axes.errorbar(
            [variant], [estimate.mean], yerr=[estimate.half_width], fmt="o", color=colour, capsize=4
        )
    axes.set(ylabel=metric)
