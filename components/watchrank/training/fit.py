"""The one training loop: any model, any loss, any batches; resumable at every checkpoint."""

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from watchrank.config import TrainingSettings
from watchrank.datasets.batches import Batch
from watchrank.storage import atomic_path

logger = logging.getLogger(__name__)

Loss = Callable[[nn.Module, Batch], Tensor]
"""(model, batch) to the loss of each of its N rows."""


class Batches(Protocol):
    """What `fit` reads: a number of batches, and the batches of an epoch in a repeatable order."""

    def __len__(self) -> int: ...

    def epoch(self, epoch: int = 0, skip: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, leaving out the first `skip`."""
        ...


@dataclass
class Epoch:
    """One line of the learning curve."""

    epoch: int
    train_loss: float
    validation_loss: float | None
    seconds: float
    loading_share: float


@dataclass
class State:
    """Where a run stands beside its weights: all that a resumed run needs to go on as if never stopped."""

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    rows: int = 0
    best_loss: float = math.inf
    stale_epochs: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


def device_of(settings: TrainingSettings) -> torch.device:
    """Return the device that the settings name; `auto` is the GPU when there is one."""
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(settings.device)


class Fit:
    """One run of training: `Fit(...).run()`.

    The learning rate falls from its setting to 0 by a half cosine. The weights of the epoch with the
    best validation loss win; without validation, those of the last epoch.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        train: Batches,
        validation: Batches | None,
        settings: TrainingSettings,
        *,
        checkpoint: Path,
        key: str,
        validation_loss: Loss | None = None,
    ) -> None:
        """Prepare a run.

        Args:
            model: trained in place, on the device of the settings.
            loss: the loss of each row of a batch.
            train: the batches to learn from.
            validation: the later window that decides when to stop.
            settings: of the run.
            checkpoint: file written every `checkpoint_steps` steps and resumed from when it is there.
            key: names the model, the data and the settings; a checkpoint of another key is not used.
            validation_loss: the loss of each row of a validation batch; `loss` when not given.
        """
        self.device = device_of(settings)
        self.model = model.to(self.device)
        self.loss, self.train = loss, train
        self.validation, self.validation_loss = validation, validation_loss or loss
        self.settings, self.checkpoint, self.key = settings, checkpoint, key
        self.optimizer = torch.optim.AdamW(
            _parameter_groups(model, settings),
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        steps = settings.epochs * len(train)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(step / steps, 1)))
        )
        self.best = _copy(model)
        self.state = State()

    def run(self) -> list[Epoch]:
        """Train to the end, leave the model with its best weights, return the learning curve."""
        torch.manual_seed(self.settings.seed)
        self._resume()
        with Progress(
            transient=True, disable=not sys.stderr.isatty(), console=Console(stderr=True)
        ) as progress:
            bar = progress.add_task("training", total=self.settings.epochs * len(self.train))
            while (
                self.state.epoch < self.settings.epochs and self.state.stale_epochs < self.settings.patience
            ):
                self._epoch(lambda done: progress.update(bar, completed=done))
        self.model.load_state_dict(self.best)
        self.model.eval()
        return [Epoch(**line) for line in self.state.history]

    def _epoch(self, report: Callable[[int], None]) -> None:
        clock = _Clock()
        self.model.train()
        done = self.state.epoch * len(self.train)
        for batch in clock.loading(self.train.epoch(self.state.epoch, skip=self.state.step)):
            self._step(batch)
            report(done + self.state.step)
            if self.state.step % self.settings.checkpoint_steps == 0:
                self._save()
        self._close_epoch(clock)
        self._save()

    def _step(self, batch: Batch) -> None:
        rows = self.loss(self.model, self._move(batch))
        self.optimizer.zero_grad(set_to_none=True)
        rows.mean().backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.schedule.step()
        self.state.step += 1
        self.state.rows += rows.numel()
        self.state.loss_sum += rows.detach().sum().item()

    def _close_epoch(self, clock: "_Clock") -> None:
        state = self.state
        validation_loss = self._validate()
        loss = validation_loss if validation_loss is not None else -state.epoch
        if loss < state.best_loss:
            state.best_loss, state.stale_epochs, self.best = loss, 0, _copy(self.model)
        else:
            state.stale_epochs += 1
        line = Epoch(
            epoch=state.epoch,
            train_loss=state.loss_sum / state.rows,
            validation_loss=validation_loss,
            seconds=clock.seconds,
            loading_share=clock.loading_seconds / clock.seconds,
        )
        logger.info("%s", line)
        state.history.append(asdict(line))
        state.epoch, state.step, state.loss_sum, state.rows = state.epoch + 1, 0, 0.0, 0

    @torch.no_grad()
    def _validate(self) -> float | None:
        if self.validation is None:
            return None
        self.model.eval()
        total, rows = 0.0, 0
        for batch in self.validation.epoch():
            losses = self.validation_loss(self.model, self._move(batch))
            total, rows = total + losses.sum().item(), rows + losses.numel()
        return total / rows

    def _move(self, batch: Batch) -> Batch:
        features = {name: value.to(self.device, non_blocking=True) for name, value in batch.features.items()}
        labels = {name: value.to(self.device, non_blocking=True) for name, value in batch.labels.items()}
        return Batch(features, labels)

    def _save(self) -> None:
        values = {
            "key": self.key,
            "state": asdict(self.state),
            "model": self.model.state_dict(),
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
        }
        with atomic_path(self.checkpoint) as fresh:
            torch.save(values, fresh)

    def _resume(self) -> None:
        if not self.checkpoint.exists():
            return
        values = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        if values["key"] != self.key:
            logger.warning("The checkpoint %s is of another run: it is not used.", self.checkpoint)
            return
        self.state = State(**values["state"])
        self.model.load_state_dict(values["model"])
        self.best = values["best"]
        self.optimizer.load_state_dict(values["optimizer"])
        self.schedule.load_state_dict(values["schedule"])
        torch.set_rng_state(values["rng"])
        if values["cuda_rng"]:
            torch.cuda.set_rng_state_all(values["cuda_rng"])
        logger.info("Resumed at epoch %d, step %d.", self.state.epoch, self.state.step)


class _Clock:
    """Wall time of an epoch, and how much of it went into loading batches."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.loading_seconds = 0.0

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def loading(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self.loading_seconds += time.perf_counter() - asked
            if batch is None:
                return
            yield batch


def _parameter_groups(model: nn.Module, settings: TrainingSettings) -> list[dict[str, Any]]:
    """Embedding tables learn at a rate of their own: a row is seen too rarely to bear the full one."""
    tables = {id(m.weight): m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    others = [parameter for parameter in model.parameters() if id(parameter) not in tables]
    rate = settings.learning_rate * settings.embedding_rate
    return [{"params": others}, {"params": list(tables.values()), "lr": rate}]


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
