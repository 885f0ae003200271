"""Training throughput of candidate generation over many videos, beside torch-rechub's YoutubeDNN.

```
python tests/benchmarks/candidate_throughput.py [--videos 1000000] [--batches 256 2048] [--rounds 3]
```
The same made-up examples (ids by Zipf's law) train the same network: the mean of 50 watched videos' vectors,
layers of 128 and 64, one table of videos for input and output. One line has watchrank's default instead: two
tables, a bag of recent watches, dropout. watchrank trains through its own `Fit`. torch-rechub, which adds
batch normalisation, runs with its own trainer and dataset in two ways: as its example for YoutubeDNN does (8
workers that load example by example, 3 negatives, dense Adam), and as fast as its parameters allow (whole
batches, fused Adam). It is given its negatives ready, drawn as its example draws them: by count ** 0.75.

Each measurement has a process of its own, so that its peak of memory is its own; torch-rechub's 8 workers
are not counted in it. The variants take turns; the median of the rounds is shown. The full softmax, which is
slow, takes its turn once, and scores 256 examples at a time for their scores of all videos to fit into
memory; a larger batch is as many of these as one step.
"""

import argparse
import contextlib
import io
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import BatchSampler, DataLoader, RandomSampler
from torch_rechub.basic.features import SequenceFeature, SparseFeature
from torch_rechub.models.matching import YoutubeDNN
from torch_rechub.trainers import MatchTrainer
from torch_rechub.utils.data import MatchDataGenerator, TorchDataset

from watchrank.config import CandidateSettings, CandidateTrainingSettings
from watchrank.datasets.batches import Batch
from watchrank.datasets.candidates import CandidateDataset
from watchrank.datasets.columns import ColumnWriter
from watchrank.schema import FEATURE_ORIGIN
from watchrank.storage import write_json
from watchrank.training.candidate_generation import CandidateBatches, new_loss, new_model
from watchrank.training.fit import Fit

EXAMPLES = 196_608
HISTORY = 50
WIDTH = 64
LAYERS = (128, WIDTH)
DAY = 86_400
ZIPF = 1.0
"""The i-th most watched video is watched by 1 / i ** ZIPF."""

THEIR_NEGATIVES = 3
THEIR_OPTIMIZER = {"lr": 1e-4, "weight_decay": 1e-6}
AT_ONCE = 256
"""Examples that the full softmax scores at once."""

SAME_NETWORK = CandidateSettings(
    depth=len(LAYERS), dim=WIDTH, tied=True, recent=0, exclude=("example_age",), dropout=0
)
TWO_TABLES = CandidateSettings(depth=len(LAYERS), dim=WIDTH, exclude=("example_age",))
T = TypeVar("T")


def main() -> None:
    """Print examples a second and peak memory of every variant and batch size."""
    args = arguments()
    rates: dict[tuple[str, int], list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        dataset = Path(folder) / "dataset"
        apart(write_dataset, dataset, args.videos)
        for turn in range(args.rounds):
            for batch in args.batches:
                for name in VARIANTS:
                    if name != FULL or not turn:
                        found = apart(measure, name, dataset, batch, args.seconds)
                        rates.setdefault((name, batch), []).append(found)
    title = f"Training over {args.videos:,} videos, {torch.get_num_threads()} threads"
    Console(width=130).print(as_table(title, rates))


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Training throughput of candidate generation.")
    parser.add_argument("--videos", type=int, default=1_000_000)
    parser.add_argument("--batches", type=int, nargs="+", default=[256, 2_048], help="multiples of 256")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2, help="of each measurement, after one step")
    return parser.parse_args()


def as_table(title: str, rates: dict[tuple[str, int], list[tuple[float, float]]]) -> Table:
    """Lay the medians out, with the smallest and largest rate."""
    table = Table(title=title)
    table.add_column("model", no_wrap=True)
    for name in ("batch", "examples/s", "range", "x full", "x rechub", "x rechub, fastest", "peak, GiB"):
        table.add_column(name, justify="right")
    medians = {place: np.median(found, axis=0) for place, found in rates.items()}
    for (name, batch), (rate, peak) in medians.items():
        own = [found for found, _ in rates[name, batch]]
        ratios = [rate / medians[other, batch][0] for other in (FULL, DOCUMENTED, FASTEST)]
        table.add_row(
            name,
            f"{batch:,}",
            f"{rate:,.0f}",
            f"{min(own):,.0f}-{max(own):,.0f}",
            *(f"{ratio:.2g}" if ratio < 10 else f"{ratio:,.0f}" for ratio in ratios),
            f"{peak:.1f}",
            end_section=name == FASTEST,
        )
    return table


# -- Measuring ------------------------------------------------------------------------------------------


def apart(work: Callable[..., T], *args: Any) -> T:
    """Call `work` in a fresh process, which may have children of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *args).result()


def measure(name: str, dataset: Path, batch: int, seconds: float) -> tuple[float, float]:
    """Train for some seconds; return examples a second and this process's peak of memory in GiB."""
    rate = VARIANTS[name](dataset, batch, seconds)
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (peak,) = [int(line.split()[1]) for line in status if line.startswith("VmHWM:")]
    return rate, peak / 2**20


class Timed:
    """Batches for `seconds` after the first step, which warms up; one step more at the least."""

    def __init__(self, batches: Any, seconds: float, a_step: int = 1) -> None:
        """Prepare; after every `a_step` batches the trainer makes a step."""
        self.batches, self.seconds, self.a_step = batches, seconds, a_step
        self.steps_a_second = 0.0

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch."""
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        """Yield batches, as torch-rechub asks for them."""
        return self._timed(self.batches)

    def epoch(self, epoch: int = 0, skip: int = 0) -> Iterator[Batch]:
        """Yield batches, as `Fit` asks for them."""
        return self._timed(self.batches.epoch(epoch, skip))

    def _timed(self, batches: Iterable[Any]) -> Iterator[Any]:
        started = 0.0
        for place, batch in enumerate(batches):
            steps, rest = divmod(place, self.a_step)
            if steps == 1 and not rest:
                started = perf_counter()
            elif steps > 1 and not rest:
                elapsed = perf_counter() - started
                self.steps_a_second = (steps - 1) / elapsed
                if elapsed >= self.seconds:
                    return
            yield batch


# -- Data -----------------------------------------------------------------------------------------------


def write_dataset(folder: Path, videos: int) -> None:
    """Write examples as `build_candidate_dataset` does; every video is watched at least once."""
    rng = np.random.default_rng(0)
    ids = np.sort(rng.choice(2**40, videos, replace=False))
    by_rank = rng.permutation(ids)
    cumulative = np.cumsum(1 / np.arange(1, videos + 1) ** ZIPF)

    def drawn(*shape: int) -> np.ndarray:
        found: np.ndarray = by_rank[np.searchsorted(cumulative, rng.random(shape) * cumulative[-1])]
        return found

    train = {
        "user_id": np.arange(EXAMPLES),
        "now": np.sort(rng.integers(0, DAY, EXAMPLES)),
        "video_id": drawn(EXAMPLES),
        "watched_video_ids": drawn(EXAMPLES, HISTORY),
    }
    watched = np.concatenate([train["video_id"], ids])
    none = {"user_id": np.empty(0, np.int64), "video_id": np.empty(0, np.int64)}
    watches = {"user_id": np.arange(len(watched)), "video_id": watched}
    for name, columns in {"train": train, "validation": none, "watches": watches}.items():
        with ColumnWriter(
            folder / name, {column: values[:0] for column, values in columns.items()}
        ) as writer:
            writer.append(columns)
    absent = sorted(FEATURE_ORIGIN)
    write_json(folder / "manifest.json", {"absent_features": absent, "end_seconds": DAY})


# -- watchrank ------------------------------------------------------------------------------------------


def ours(loss: str, settings: CandidateSettings = SAME_NETWORK) -> Callable[[Path, int, float], float]:
    """Return what trains watchrank's model with a loss and returns examples a second."""

    def rate(dataset: Path, batch: int, seconds: float) -> float:
        data = CandidateDataset.open(dataset)
        torch.manual_seed(0)
        model = new_model(data, settings)
        values = {"loss": loss, "epochs": 1, "batch_size": batch, "checkpoint_steps": 10**9, "device": "cpu"}
        if loss == "full":  # its gradients are dense, as in `fit_candidates`
            values |= {"batch_size": AT_ONCE, "accumulate": batch // AT_ONCE}
            values |= {"sparse_rows": model.vocabulary.rows + 1}
        training = CandidateTrainingSettings(**values)
        names, end = model.tower.names, data.manifest["end_seconds"]
        batches = CandidateBatches(data.split("train"), names, training.batch_size, end_seconds=end, seed=0)
        timed = Timed(batches, seconds, training.accumulate)
        task = new_loss(model, data, training)
        with tempfile.TemporaryDirectory() as folder:
            Fit(task, loss_of, timed, None, training, checkpoint=Path(folder) / "c", key="").run()
        return timed.steps_a_second * batch

    return rate


def loss_of(task: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Return the loss of each example."""
    loss: torch.Tensor = task(batch.features, batch.labels["video_id"])
    return loss


# -- torch-rechub ---------------------------------------------------------------------------------------


def rechub_documented(dataset: Path, batch: int, seconds: float) -> float:
    """Train as torch-rechub's example does; return examples a second."""
    samples, vocabulary = their_samples(dataset)
    first_is_right = np.zeros(len(samples["video"]), dtype=np.int64)
    few = {name: values[:1] for name, values in samples.items()}
    loader, _, _ = MatchDataGenerator(samples, first_is_right).generate_dataloader(few, few, batch)
    return their_rate(loader, vocabulary, batch, seconds, THEIR_OPTIMIZER)


def rechub_fastest(dataset: Path, batch: int, seconds: float) -> float:
    """Train with batches read whole from their dataset, and a fused optimizer; return examples a second."""
    samples, vocabulary = their_samples(dataset)
    samples = {name: torch.from_numpy(values) for name, values in samples.items()}
    data = TorchDataset(samples, torch.zeros(len(samples["video"]), dtype=torch.int64))
    rows = BatchSampler(RandomSampler(data), batch, drop_last=False)
    loader = DataLoader(data, sampler=rows, batch_size=None)
    return their_rate(loader, vocabulary, batch, seconds, THEIR_OPTIMIZER | {"fused": True})


def their_samples(dataset: Path) -> tuple[dict[str, np.ndarray], int]:
    """Return the examples as torch-rechub wants them, list-wise, and the size of their vocabulary."""
    data = CandidateDataset.open(dataset)
    train = data.split("train")
    videos, counts = np.unique(data.watches["video_id"], return_counts=True)
    cumulative = np.cumsum(counts**0.75)
    drawn = np.random.default_rng(0).random((EXAMPLES, THEIR_NEGATIVES)) * cumulative[-1]
    samples = {
        "video": 1 + np.searchsorted(videos, train["video_id"]),
        "hist_video": 1 + np.searchsorted(videos, train["watched_video_ids"]),
        "neg_items": 1 + np.searchsorted(cumulative, drawn),
    }
    return samples, 1 + len(videos)


def their_rate(
    loader: DataLoader, vocabulary: int, batch: int, seconds: float, optimizer: dict[str, Any]
) -> float:
    """Train with their model and trainer; return examples a second."""
    torch.manual_seed(0)
    video = SparseFeature("video", vocab_size=vocabulary, embed_dim=WIDTH)
    shared = {"vocab_size": vocabulary, "embed_dim": WIDTH, "shared_with": "video"}
    history = SequenceFeature("hist_video", pooling="mean", **shared)
    negatives = SequenceFeature("neg_items", pooling="concat", **shared)
    model = YoutubeDNN([history], [video], [negatives], {"dims": list(LAYERS)}, temperature=0.02)
    timed = Timed(loader, seconds)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        trainer = MatchTrainer(model, mode=2, optimizer_params=optimizer, n_epoch=1, model_path=folder)
        trainer.train_one_epoch(timed)
    return timed.steps_a_second * batch


FULL = "watchrank, full softmax"
DOCUMENTED = "torch-rechub, as its example"
FASTEST = "torch-rechub, fastest"
VARIANTS: dict[str, Callable[[Path, int, float], float]] = {
    "watchrank, in-batch softmax": ours("in_batch"),
    "watchrank, in-batch, its default": ours("in_batch", TWO_TABLES),
    "watchrank, sampled softmax": ours("sampled"),
    FULL: ours("full"),
    DOCUMENTED: rechub_documented,
    FASTEST: rechub_fastest,
}


if __name__ == "__main__":
    main()
