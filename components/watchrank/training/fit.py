"""The one training loop: any model, any loss, any batches; resumable at every checkpoint."""

import contextlib
import hashlib
import itertools
import json
import logging
import math
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from watchrank.config import FitSettings, Settings
from watchrank.datasets.batches import Batch
from watchrank.storage import atomic_path
from watchrank.training import distributed

logger = logging.getLogger(__name__)

Loss = Callable[[nn.Module, Batch], Tensor]
"""(model, batch) to the loss of each impression [B, K], 0 in the places that hold none."""


_SHORTEST = 1e-9
"""Seconds: a run resumed at the end of an epoch trains for none."""


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
    impressions_a_second: float
    loading_share: float

    def __str__(self) -> str:
        """Say it in a line."""
        validation = "" if self.validation_loss is None else f", validation {self.validation_loss:.4f}"
        return (
            f"epoch {self.epoch + 1}: loss {self.train_loss:.4f}{validation}; {self.seconds:.1f} s, "
            f"{self.impressions_a_second:,.0f} impressions/s, {self.loading_share:.1%} of it loading"
        )


@dataclass
class State:
    """Where a run stands beside its weights: all that a resumed run needs to go on as if never stopped."""

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    impressions: int = 0
    best_loss: float = math.inf
    stale_epochs: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


def device_of(settings: FitSettings) -> torch.device:
    """Return the device that the settings name; `auto` is the GPU when there is one."""
    cuda = torch.cuda.is_available() if settings.device == "auto" else settings.device == "cuda"
    return torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")


def run_key(manifest: dict[str, Any], *settings: Settings) -> str:
    """Name a run by its data and settings: a checkpoint is resumed by the very same run only."""
    parts = [manifest, *(part.model_dump() for part in settings)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


class Fit:
    """One run of training: `Fit(...).run()`.

    The learning rate falls from its setting to 0 by a half cosine. The weights of the epoch with the
    best validation loss win; without validation, those of the last epoch. Under torchrun every process
    learns from its share of each batch, and process 0 writes the checkpoints.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        train: Batches,
        validation: Batches | None,
        settings: FitSettings,
        *,
        checkpoint: Path,
        key: str,
        validation_loss: Loss | None = None,
    ) -> None:
        """Prepare a run.

        Args:
            model: trained in place, on the device of the settings.
            loss: the loss of each impression of a batch.
            train: the batches to learn from.
            validation: the later window that decides when to stop.
            settings: of the run.
            checkpoint: file written every `checkpoint_steps` steps and resumed from when it is there.
            key: names the model, the data and the settings; a checkpoint of another key is not used.
            validation_loss: the loss of each impression of a validation batch; `loss` when not given.
        """
        self.device = device_of(settings)
        self.model = model.to(self.device)
        self.share = distributed.share()
        self.loss, self.train = loss, train
        self.validation, self.validation_loss = validation, validation_loss or loss
        self.settings, self.checkpoint, self.key = settings, checkpoint, key
        self.optimizers = _optimizers(model, settings)
        self.replica = distributed.replicated(self.model)
        self.network: nn.Module = torch.compile(self.replica) if settings.compile else self.replica  # type: ignore[assignment]
        self.steps = -(-len(train) // settings.accumulate)
        self.schedules = [LambdaLR(optimizer, self._share_of_rate) for optimizer in self.optimizers]
        self.best = _copy(model)
        self.state = State()

    def run(self) -> list[Epoch]:
        """Train to the end, leave the model with its best weights, return the learning curve."""
        self._resume()
        quiet = not sys.stderr.isatty() or self.share.process > 0
        with Progress(transient=True, disable=quiet, console=Console(stderr=True)) as progress:
            bar = progress.add_task("training", total=self.settings.epochs * self.steps)
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
        done = self.state.epoch * self.steps
        batches = self.train.epoch(self.state.epoch, skip=self.state.step * self.settings.accumulate)
        for group in clock.loading(_groups(batches, self.settings.accumulate)):
            self._step(group)
            clock.impressions += sum(batch.impressions for batch in group)
            report(done + self.state.step)
            if self.state.step % self.settings.checkpoint_steps == 0:
                self._save()
        self._close_epoch(clock)
        self._save()

    def _step(self, group: list[Batch]) -> None:
        """Move the weights by the mean gradient of all impressions of a group of batches."""
        torch.manual_seed(_step_seed(self.settings.seed, self.state, self.share.process))
        own = sum(batch.impressions for batch in group)
        everywhere = distributed.total([own], self.device)[0]
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        for place, batch in enumerate(group, 1):
            with self._exchange(place == len(group)):
                with self._autocast():
                    loss = self.loss(self.network, batch.to(self.device)).sum()
                (loss * (self.share.processes / everywhere)).backward()  # type: ignore[no-untyped-call]
            self.state.loss_sum += loss.item()
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
            optimizer.step()
            schedule.step()
        self.state.step += 1
        self.state.impressions += own

    def _exchange(self, now: bool) -> contextlib.AbstractContextManager[None]:
        """Only the last batch of a group exchanges gradients with the other processes."""
        replica = self.replica
        if now or not isinstance(replica, nn.parallel.DistributedDataParallel):
            return contextlib.nullcontext()
        return replica.no_sync()

    def _autocast(self) -> torch.autocast:
        lower = self.settings.precision == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=lower)

    def _share_of_rate(self, step: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * min(step / (self.settings.epochs * self.steps), 1)))

    def _close_epoch(self, clock: "_Clock") -> None:
        self._collect()
        state = self.state
        loss_sum, impressions = distributed.total([state.loss_sum, state.impressions], self.device)
        seen = distributed.total([clock.impressions], self.device)[0]
        validation_loss = self._validate()
        loss = validation_loss if validation_loss is not None else -state.epoch
        if loss < state.best_loss:
            state.best_loss, state.stale_epochs, self.best = loss, 0, _copy(self.model)
        else:
            state.stale_epochs += 1
        line = Epoch(
            epoch=state.epoch,
            train_loss=loss_sum / impressions,
            validation_loss=validation_loss,
            seconds=clock.seconds,
            impressions_a_second=seen / max(clock.training_seconds, _SHORTEST),
            loading_share=clock.loading_seconds / max(clock.training_seconds, _SHORTEST),
        )
        logger.info("%s", line)
        state.history.append(asdict(line))
        state.epoch, state.step, state.loss_sum, state.impressions = state.epoch + 1, 0, 0.0, 0

    @torch.no_grad()
    def _validate(self) -> float | None:
        if self.validation is None:
            return None
        self.model.eval()
        loss, impressions = 0.0, 0
        for batch in self.validation.epoch():
            loss += self.validation_loss(self.model, batch.to(self.device)).sum().item()
            impressions += batch.impressions
        loss_sum, everywhere = distributed.total([loss, impressions], self.device)
        return loss_sum / everywhere

    def _save(self) -> None:
        self._collect()
        if self.share.process == 0:
            values = {
                "key": self.key,
                "state": asdict(self.state),
                "model": self.model.state_dict(),
                "best": self.best,
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "schedules": [schedule.state_dict() for schedule in self.schedules],
            }
            with atomic_path(self.checkpoint) as fresh:
                _write(values, fresh)
        distributed.wait()

    def _collect(self) -> None:
        """Bring the sums of all processes to process 0, which saves them."""
        state = self.state
        loss_sum, impressions = distributed.total([state.loss_sum, state.impressions], self.device)
        first = self.share.process == 0
        state.loss_sum, state.impressions = (loss_sum, int(impressions)) if first else (0.0, 0)

    def _resume(self) -> None:
        if not self.checkpoint.exists():
            return
        if not zipfile.is_zipfile(self.checkpoint):
            logger.warning("The checkpoint %s is damaged: it is not used.", self.checkpoint)
            return
        values = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        if values["key"] != self.key:
            logger.warning("The checkpoint %s is of another run: it is not used.", self.checkpoint)
            return
        self.state = State(**values["state"])
        if self.share.process > 0:
            self.state.loss_sum, self.state.impressions = 0.0, 0
        self.model.load_state_dict(values["model"])
        self.best = values["best"]
        for optimizer, found in zip(self.optimizers, values["optimizers"], strict=True):
            optimizer.load_state_dict(found)
        for schedule, found in zip(self.schedules, values["schedules"], strict=True):
            schedule.load_state_dict(found)
        logger.info("Resumed at epoch %d, step %d.", self.state.epoch, self.state.step)


def _write(values: dict[str, Any], path: Path) -> None:
    """Write a checkpoint; what the operating system says is not hidden by what torch says of it."""
    try:
        with path.open("wb") as file:
            torch.save(values, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def _groups(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    while group := list(itertools.islice(batches, size)):
        yield group


def _step_seed(seed: int, state: State, process: int) -> int:
    """Return what a step draws its random numbers from: a resumed run draws the same."""
    sequence = np.random.SeedSequence([seed, state.epoch, state.step, process])
    return int(sequence.generate_state(1, np.uint64)[0])


class _Clock:
    """Wall time of an epoch, how much of it went into training steps, and of those into loading batches."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.loading_seconds = self.training_seconds = 0.0
        self.impressions = 0

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def loading(self, groups: Iterator[list[Batch]]) -> Iterator[list[Batch]]:
        asked = time.perf_counter()
        for group in groups:
            self.loading_seconds += time.perf_counter() - asked
            yield group
            self.training_seconds += time.perf_counter() - asked
            asked = time.perf_counter()


def _optimizers(model: nn.Module, settings: FitSettings) -> list[torch.optim.Optimizer]:
    """Make the optimizers: AdamW, and beside it SparseAdam for large embedding tables.

    Embedding tables learn at a rate of their own: a row is seen too rarely to bear the full one. Of a
    large table only the rows of the batch are touched: it has sparse gradients and no weight decay.
    """
    tables = {id(module.weight): module for module in model.modules() if isinstance(module, nn.Embedding)}
    for table in tables.values():
        table.sparse = table.num_embeddings >= settings.sparse_rows
    rate = settings.learning_rate * settings.embedding_rate
    dense = [table.weight for table in tables.values() if not table.sparse]
    sparse = [table.weight for table in tables.values() if table.sparse]
    others = [parameter for parameter in model.parameters() if id(parameter) not in tables]
    groups: list[dict[str, Any]] = [{"params": others}, {"params": dense, "lr": rate}]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    ]
    return [*optimizers, torch.optim.SparseAdam(sparse, lr=rate)] if sparse else optimizers


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
