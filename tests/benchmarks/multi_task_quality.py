"""ShareBottom, OMoE and MMoE on Census-Income (KDD), beside torch-rechub's MMOE: AUC and training speed.

```
python tests/benchmarks/multi_task_quality.py [--data census-income.sample.csv.gz] [--seeds 5] [--rounds 7]
```
Task 1 is an income above 50,000, task 2 never having been married; neither column is an input, nor is the
instance weight. Rows are split once, 4 : 1 : 1, at random. All models are given the same categories and the
same numbers, standardised on the training rows. They learn by the same loop with the sizes and settings of
torch-rechub's example for this data (`run_census.py`: embeddings of 4, 8 experts of 16, towers of 8, Adam
with a weight decay of 1e-4, batches of 1,024) but a learning rate at which both MMoEs do better on the
validation rows. They are measured on the test rows after the epoch of their best mean AUC on validation.

torch-rechub's MMOE, which normalises each layer over the batch, is timed in two ways: by its own loader and
trainer, as its example does, and by the loop that watchrank's models learn by. The ways take turns.
"""

import argparse
import contextlib
import copy
import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from census import DATA, NUMBERS, Census, Split, read
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch_rechub.basic.features import DenseFeature, SparseFeature
from torch_rechub.models.multi_task import MMOE
from torch_rechub.trainers import MTLTrainer
from torch_rechub.utils.data import DataGenerator

from watchrank.evaluation.metrics import auc
from watchrank.models.multi_task import MixtureOfExperts, ShareBottom, Towers

TASKS = ("income > 50K", "never married")
DIM, EXPERTS, EXPERT, TOWER = 4, 8, 16, 8
OPTIMIZER = {"lr": 6e-3, "weight_decay": 1e-4}
BATCH, EPOCHS = 1_024, 15


class MultiTask(nn.Module):
    """All categories in one table of embeddings, the structure, and its towers."""

    loss = staticmethod(F.binary_cross_entropy_with_logits)

    def __init__(self, sizes: list[int], structure: Callable[[int], ShareBottom | MixtureOfExperts]) -> None:
        super().__init__()
        self.firsts = torch.tensor([0, *sizes[:-1]]).cumsum(0)
        self.table = nn.Parameter(0.05 * torch.randn(sum(sizes), DIM))
        self.shared = structure(len(sizes) * DIM + len(NUMBERS))
        self.towers = Towers(self.shared.width, [TOWER], self.shared.tasks)

    def columns(self, split: Split) -> dict[str, Tensor]:
        """Return ids that are rows of the one table, and the numbers."""
        return {"ids": split.ids + self.firsts, "numbers": split.numbers}

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        """Return logits [N, T]."""
        ids, numbers = x["ids"], x["numbers"]
        found = self.table.index_select(0, ids.flatten()).view(len(ids), -1)  # its gradient is index_add
        return self.towers(self.shared(torch.cat([found, numbers], 1)))


class TheirMMOE(MMOE):
    """torch-rechub's model, with a column and a table for each category."""

    loss = staticmethod(F.binary_cross_entropy)

    def __init__(self, sizes: list[int]) -> None:
        sparse = [SparseFeature(f"category {place}", size, embed_dim=DIM) for place, size in enumerate(sizes)]
        dense = [DenseFeature(f"number {place}") for place in range(len(NUMBERS))]
        kinds, towers = ["classification"] * len(TASKS), [{"dims": [TOWER]}] * len(TASKS)
        super().__init__([*sparse, *dense], kinds, EXPERTS, {"dims": [EXPERT]}, towers)

    def columns(self, split: Split) -> dict[str, Tensor]:
        """Return every column apart, each with its values side by side in memory."""
        ids = {f"category {place}": column.contiguous() for place, column in enumerate(split.ids.T)}
        return ids | {f"number {place}": column.contiguous() for place, column in enumerate(split.numbers.T)}


BOTTOM = EXPERTS * (EXPERT + 1)
"""About as many parameters as the experts and gates have."""

SINGLE_TASK = partial(MultiTask, structure=lambda w: ShareBottom(w, [BOTTOM], 1))
VARIANTS: dict[str, Callable[[list[int]], nn.Module]] = {
    "ShareBottom": partial(MultiTask, structure=lambda w: ShareBottom(w, [BOTTOM], 2)),
    "OMoE": partial(MultiTask, structure=lambda w: MixtureOfExperts(w, [EXPERT], EXPERTS, 2, gates=1)),
    "MMoE": partial(MultiTask, structure=lambda w: MixtureOfExperts(w, [EXPERT], EXPERTS, 2, gates=2)),
    "torch-rechub MMOE": TheirMMOE,
}


def train_one_epoch(model: nn.Module, optimizer: Optimizer, x: dict[str, Tensor], labels: Tensor) -> None:
    """Shuffle the rows once and learn from them batch by batch, each a view."""
    model.train()
    order = torch.randperm(len(labels))
    x, labels = {name: column[order] for name, column in x.items()}, labels[order]
    for first in range(0, len(labels), BATCH):
        batch = slice(first, first + BATCH)
        optimizer.zero_grad()
        answer = model({name: column[batch] for name, column in x.items()})
        model.loss(answer, labels[batch]).backward()
        optimizer.step()


def fused_adam(model: nn.Module) -> Optimizer:
    return torch.optim.Adam(model.parameters(), fused=True, **OPTIMIZER)


def fit(model: nn.Module, data: Census, tasks: slice) -> list[float]:
    """Train; return the test AUC of each task of the epoch that was best on the validation rows."""
    optimizer, columns = fused_adam(model), model.columns(data.train)
    best, weights = 0.0, model.state_dict()
    for _ in range(EPOCHS):
        train_one_epoch(model, optimizer, columns, data.train.labels[:, tasks])
        found = float(np.mean(aucs(model, data.validation, tasks)))
        if found > best:
            best, weights = found, copy.deepcopy(model.state_dict())
    model.load_state_dict(weights)
    return aucs(model, data.test, tasks)


@torch.no_grad()
def aucs(model: nn.Module, split: Split, tasks: slice) -> list[float]:
    """Return the AUC of each task."""
    model.eval()
    answers = model(model.columns(split)).numpy()
    labels = split.labels[:, tasks].numpy() > 0
    return [auc(answer, label) for answer, label in zip(answers.T, labels.T, strict=True)]


def quality(data: Census, seeds: int) -> dict[str, np.ndarray]:
    """Return the test AUC of each model [seeds, T]."""
    found: dict[str, list[list[float]]] = {name: [] for name in ("single-task", *VARIANTS)}
    for seed in range(seeds):
        torch.manual_seed(seed)
        single = [SINGLE_TASK(data.sizes) for _ in TASKS]
        apart = [fit(model, data, slice(task, task + 1)) for task, model in enumerate(single)]
        found["single-task"].append([value for (value,) in apart])
        for name, new in VARIANTS.items():
            torch.manual_seed(seed)
            found[name].append(fit(new(data.sizes), data, slice(None)))
    return {name: np.array(values) for name, values in found.items()}


def our_epoch(new: Callable[[list[int]], nn.Module], data: Census) -> float:
    """Time an epoch of the plain loop, in seconds."""
    model = new(data.sizes)
    optimizer, columns = fused_adam(model), model.columns(data.train)
    started = perf_counter()
    train_one_epoch(model, optimizer, columns, data.train.labels)
    return perf_counter() - started


def their_epoch(data: Census) -> float:
    """Time an epoch of torch-rechub's own loader and trainer, in seconds."""
    model = TheirMMOE(data.sizes)
    columns = {name: column.numpy() for name, column in model.columns(data.train).items()}
    labels = data.train.labels.numpy()
    loader, _, _ = DataGenerator(columns, labels).generate_dataloader(
        x_val=columns, y_val=labels, x_test=columns, y_test=labels, batch_size=BATCH
    )
    trainer = MTLTrainer(model, model.task_types, optimizer_params=OPTIMIZER)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        started = perf_counter()
        trainer.train_one_epoch(loader)
        return perf_counter() - started


WAYS: dict[str, Callable[[Census], float]] = {
    "watchrank MMoE": partial(our_epoch, VARIANTS["MMoE"]),
    "torch-rechub, its loader and trainer": their_epoch,
    "torch-rechub, the plain loop": partial(our_epoch, TheirMMOE),
}


def main() -> None:
    """Print training examples a second by way, and test AUC by model."""
    parser = argparse.ArgumentParser(description="Multi-task models on Census-Income (KDD).")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    data, console = read(args.data), Console(width=110)
    seconds = np.array([[way(data) for way in WAYS.values()] for _ in range(args.rounds)])
    rates = len(data.train.labels) / seconds
    title = f"Training, batches of {BATCH:,}, {torch.get_num_threads()} threads, {args.rounds} rounds"
    table = Table("way", "examples/s, median", "watchrank is x as fast", title=title)
    for name, rate in zip(WAYS, rates.T, strict=True):
        ratio = np.median(rates[:, 0] / rate)
        table.add_row(name, f"{np.median(rate):,.0f} ({rate.min():,.0f}-{rate.max():,.0f})", f"{ratio:.2f}")
    console.print(table)
    table = Table("model", "parameters", *TASKS, title=f"Test AUC, mean of {args.seeds} seeds")
    for name, values in quality(data, args.seeds).items():
        model, times = (VARIANTS[name](data.sizes), 1) if name in VARIANTS else (SINGLE_TASK(data.sizes), 2)
        size = times * sum(parameter.numel() for parameter in model.parameters())
        cells = [f"{column.mean():.4f} ({column.min():.4f}-{column.max():.4f})" for column in values.T]
        table.add_row(name, f"{size:,}", *cells)
    console.print(table)


if __name__ == "__main__":
    main()
