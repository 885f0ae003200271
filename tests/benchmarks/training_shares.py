"""Training speed of every model by batch size, and where a step's time goes.

Each model trains through `Fit`, as in a run, on examples of one simulated log, for some seconds after the
first step. Losses within the batch make a score of every pair, so they end at `MOST_PAIRS`; texts end at
`MOST_TEXTS`. On a GPU, when there is one, every reading of the clock waits for it.
"""

import itertools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from simulated import FEATURE_REPO, simulated_workspace
from torch import Tensor, nn
from torch.profiler import profile

from watchrank.config import (
    CandidateSettings,
    CandidateTrainingSettings,
    Config,
    FitSettings,
    RankingSettings,
    TextSettings,
    TextTrainingSettings,
    TrainingSettings,
)
from watchrank.datasets.batches import Batch, RankingBatches
from watchrank.datasets.candidates import CandidateDataset, build_candidate_dataset
from watchrank.datasets.ranking import RankingDataset
from watchrank.datasets.searches import SearchDataset, build_search_dataset
from watchrank.feature_store import open_store
from watchrank.training import candidate_generation, ranking, text_matching
from watchrank.training.fit import Batches, Fit, Loss
from watchrank.workspace import Workspace

MOST_PAIRS = 8_192
MOST_TEXTS = 16_384
SELF_TIME = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
RANKERS = ("ranking", "share_bottom", "mmoe")
TOWERS = ("cnn", "lstm")
LOSSES = ("in_batch", "sampled")


@dataclass(frozen=True)
class Task:
    """What `Fit` needs."""

    network: nn.Module
    loss: Loss
    batches: Batches
    settings: FitSettings


Make = Callable[[Workspace, int], Task]


class Clock:
    """Batches for some seconds after a first step, and how long the parts of these steps took."""

    def __init__(self, batches: Batches, seconds: float) -> None:
        """Prepare; an epoch that ends too early is followed by the next."""
        self.batches, self.seconds = batches, seconds
        self.examples = 0
        self.parts = dict.fromkeys(("loading", "forward", "optimiser"), 0.0)
        self.whole = 0.0

    def __len__(self) -> int:
        """Return the number of batches of an epoch, for the schedule of the learning rate."""
        return len(self.batches)

    def epoch(self, epoch: int = 0, skip: int = 0) -> Iterator[Batch]:
        """Yield batches, as `Fit` asks for them."""
        batches = (batch for number in itertools.count() for batch in self.batches.epoch(number))
        yield next(batches)
        self.parts = dict.fromkeys(self.parts, 0.0)
        started = asked = now()
        for batch in batches:
            self.parts["loading"] += now() - asked
            self.examples += batch.impressions
            yield batch
            asked = now()
            if asked - started >= self.seconds:
                break
        self.whole = now() - started

    def forward(self, loss: Loss) -> Loss:
        """Return a loss that adds what it takes to the forward part."""

        def timed(network: nn.Module, batch: Batch) -> Tensor:
            started = now()
            value = loss(network, batch)
            self.parts["forward"] += now() - started
            return value

        return timed

    def optimiser(self, optimizer: torch.optim.Optimizer) -> None:
        """Add what a step of the optimizer takes to its part."""
        started = 0.0

        def before(*_: object) -> None:
            nonlocal started
            started = now()

        def after(*_: object) -> None:
            self.parts["optimiser"] += now() - started

        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)


def now() -> float:
    """Return the time in seconds; on a GPU when all that was asked of it is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return perf_counter()


def ranker(kind: str) -> Make:
    """Return what makes the task of a ranker."""

    def make(place: Workspace, batch: int) -> Task:
        data, settings = RankingDataset.open(place.dataset), RankingSettings(model=kind)
        training = TrainingSettings(batch_size=batch)
        model = ranking.new_model(data, settings)
        names, labels = model.inputs.input_names, ranking.label_names(model.tasks)
        batches = RankingBatches(data.split("train"), names, batch, seed=0, labels=labels)
        return Task(model, ranking.ranking_loss(model, training.objective), batches, training)

    return make


def candidates(loss: str) -> Make:
    """Return what makes the task of candidate generation with a softmax."""

    def make(place: Workspace, batch: int) -> Task:
        data = CandidateDataset.open(place.candidate_dataset)
        training = CandidateTrainingSettings(batch_size=batch, loss=loss)
        model = candidate_generation.new_model(data, CandidateSettings())
        batches = candidate_generation.CandidateBatches(
            data.split("train"), model.tower.names, batch, end_seconds=data.manifest["end_seconds"], seed=0
        )
        return Task(candidate_generation.new_loss(model, data, training), label_loss, batches, training)

    return make


def text(tower: str) -> Make:
    """Return what makes the task of text matching with a tower, against negatives of each search's own."""

    def make(place: Workspace, batch: int) -> Task:
        data = SearchDataset.open(place.search_dataset)
        settings = TextSettings(tower=tower, loss="negatives")
        training = TextTrainingSettings(batch_size=batch)
        model = text_matching.new_model(data, settings)
        batches = text_matching.SearchBatches(
            data, "train", text_matching.field_names(model), batch, negatives=settings.negatives, seed=0
        )
        return Task(text_matching.new_loss(model, data, settings, training), label_loss, batches, training)

    return make


def label_loss(task: nn.Module, batch: Batch) -> Tensor:
    """Return the loss of each example against its label."""
    (label,) = batch.labels.values()
    loss: Tensor = task(batch.features, label)
    return loss


MODELS: dict[str, tuple[Make, int | None]] = {
    **{kind: (ranker(kind), None) for kind in RANKERS},
    **{
        f"candidates/{loss}": (candidates(loss), MOST_PAIRS if loss == "in_batch" else None)
        for loss in LOSSES
    },
    **{f"{tower}_dssm": (text(tower), MOST_TEXTS) for tower in TOWERS},
}
"""What makes each model's task, and the largest batch it is tried at."""


def workspace(impressions: int) -> Workspace:
    """Return a workspace with all three datasets."""
    place, config = simulated_workspace(impressions), Config.load()
    if not place.candidate_dataset.exists():
        store = open_store(FEATURE_REPO, place.features, place.feature_store)
        build_candidate_dataset(place.events, store, place.candidate_dataset, config.examples, config.split)
    if not place.search_dataset.exists():
        build_search_dataset(place.events, place.search_dataset, config.text, config.split)
    return place


def measured(task: Task, seconds: float, operators: int) -> Clock:
    """Train for so many seconds; print what torch's profiler says of so many operators, the longest first."""
    clock = Clock(task.batches, seconds)
    settings = task.settings.model_copy(update={"epochs": 1, "checkpoint_steps": 10**9})
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint"
        fit = Fit(
            task.network, clock.forward(task.loss), clock, None, settings, checkpoint=checkpoint, key=""
        )
        for optimizer in fit.optimizers:
            clock.optimiser(optimizer)
        with profile(profile_memory=True) if operators else nullcontext() as profiled:
            fit.run()
    if profiled:
        print(profiled.key_averages().table(sort_by=SELF_TIME, row_limit=operators, max_name_column_width=40))
    return clock


def main(
    impressions: Annotated[int, typer.Option(help="of the simulated log")] = 1_000_000,
    seconds: Annotated[float, typer.Option(help="to train for, a model and batch size")] = 10,
    batches: Annotated[str, typer.Option(help="sizes, with commas")] = "1024,4096,16384,65536",
    models: Annotated[str, typer.Option(help="which, with commas; all when not given")] = "",
    operators: Annotated[int, typer.Option("--profile", help="operators to list, the longest first")] = 0,
) -> None:
    """Print the table."""
    place = workspace(impressions)
    table = Table(
        "model", title="Training: examples a second, and shares of the time", caption="backward: the rest"
    )
    for name in ("batch", "examples/s", "loading", "forward", "backward", "optimiser"):
        table.add_column(name, justify="right")
    wanted = models.split(",") if models else list(MODELS)
    for name in wanted:
        make, most = MODELS[name]
        for batch in map(int, batches.split(",")):
            if most and batch > most:
                continue
            torch.manual_seed(0)
            clock = measured(make(place, batch), seconds, operators)
            shares = {part: taken / clock.whole for part, taken in clock.parts.items()}
            shares["backward"] = 1 - sum(shares.values())
            row = [f"{shares[part]:.0%}" for part in ("loading", "forward", "backward", "optimiser")]
            table.add_row(name, f"{batch:,}", f"{clock.examples / clock.whole:,.0f}", *row)
            print(name, batch, f"{clock.examples / clock.whole:,.0f}", *row, flush=True)
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
