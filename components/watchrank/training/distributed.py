"""Data-parallel training: every process that torchrun started learns from its share of every batch.

```
torchrun --nproc-per-node 2 --no-python watchrank train --workspace <folder on a disk that all share>
```
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from watchrank.datasets.batches import Share
from watchrank.storage import writing


@contextlib.contextmanager
def process_group(kind: str) -> Iterator[None]:
    """Join the other processes that torchrun started, if it did, and leave them at the end.

    Args:
        kind: of device, "cuda" or "cpu"; every process of a machine has a GPU of its own.
    """
    if not dist.is_torchelastic_launched():
        yield
        return
    dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    if kind == "cuda":
        torch.cuda.set_device(dist.get_node_local_rank())
    try:
        yield
    finally:
        dist.destroy_process_group()


def share() -> Share:
    """Return which of how many processes this is."""
    return Share(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Share()


@contextlib.contextmanager
def holding(output: Path) -> Iterator[None]:
    """Hold the output of a training for all its processes; wait while another training writes it."""
    with writing(output) if share().process == 0 else contextlib.nullcontext():
        wait()
        yield


def total(values: list[float], device: torch.device) -> list[float]:
    """Sum each value over all processes."""
    if not dist.is_initialized():
        return values
    sums = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(sums)
    return sums.tolist()


def wait() -> None:
    """Wait until every process has come here."""
    if dist.is_initialized():
        dist.barrier()


def replicated(model: nn.Module) -> nn.Module:
    """Wrap a model so that `backward` averages its gradients over all processes."""
    if not dist.is_initialized():
        return model
    return nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
