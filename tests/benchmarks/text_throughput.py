"""Text matching: texts a second by tower, in training and serving; the peephole LSTM beside torch's.

```
python tests/benchmarks/text_throughput.py ../shared/data
```
The texts are those of QBQTC. Training is a step of the in-batch softmax, a query and a title an example,
without the optimizer; serving is the exported query tower on ONNX Runtime. Both on one thread.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from rich.console import Console
from rich.table import Table
from text_quality import MAX_NGRAMS, MAX_VOCABULARY, MAX_WORDS, TOWERS, qbqtc
from torch import nn

from watchrank.config import ExportSettings
from watchrank.export.onnx import export_onnx
from watchrank.export.text import VECTOR, text_input
from watchrank.models.lookup import top_ids
from watchrank.models.text.peephole_lstm import PeepholeLstm
from watchrank.models.text.tokens import ngram_ids
from watchrank.models.text.two_towers import QUERY, TITLE, DocumentTower, QueryTower, TextMatch
from watchrank.schema import Tensor
from watchrank.training.matching import InBatchMatchingLoss

BATCH = 256
ROUNDS = 7


def main(folder: Path) -> None:
    """Print the tables."""
    torch.set_num_threads(1)
    data = qbqtc(folder)
    read = {"max_words": MAX_WORDS, "max_ngrams": MAX_NGRAMS}
    seconds = timed(lambda: ngram_ids(data.documents, **read), rounds=3)
    print(f"tokenisation: {len(data.documents) / seconds:,.0f} texts/s")
    vocabulary = ngram_ids(data.documents, **read).ravel()
    keys = top_ids(vocabulary, np.ones(len(vocabulary)), MAX_VOCABULARY)
    queries, titles = (ngram_ids(texts[:BATCH], **read) for texts in (data.queries, data.documents))
    table = Table(
        "tower", "training", f"serving, {BATCH} titles", "serving, 1 query, ms", title="texts a second"
    )
    for name, tower in TOWERS.items():
        text = tower(keys)
        many, one = serving(text, [titles, queries[:1]])
        step = timed(training_step(text, queries, titles))
        table.add_row(name, f"{2 * BATCH / step:,.0f}", f"{BATCH / many:,.0f}", f"{one * 1e3:.2f}")
    Console(width=120).print(table)
    print_lstm()


def timed(run: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Return the median seconds of a run, after one to warm up."""
    run()
    return statistics.median(once(run) for _ in range(rounds))


def once(run: Callable[[], object]) -> float:
    """Return the seconds of one run."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def training_step(text: nn.Module, queries: np.ndarray, titles: np.ndarray) -> Callable[[], None]:
    """Return a forward and backward pass over a batch, gradients by row."""
    text.bags.table.sparse = True
    loss = InBatchMatchingLoss(
        TextMatch(QueryTower(text), DocumentTower(text)), torch.arange(BATCH), torch.ones(BATCH)
    )
    x = {QUERY: torch.from_numpy(queries), TITLE: torch.from_numpy(titles)}

    def step() -> None:
        loss.zero_grad(set_to_none=True)
        loss(x, torch.arange(BATCH).unsqueeze(1)).sum().backward()

    return step


def serving(text: nn.Module, inputs: list[np.ndarray]) -> list[float]:
    """Return the seconds of ONNX Runtime for each batch of n-gram ids."""
    vector = Tensor(name=VECTOR, dtype="float32", dims=(128,), description="the vector")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "query.onnx"
        export_onnx(QueryTower(text).eval(), [text_input(QUERY)], [vector], graph, ExportSettings())
        session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        return [timed(lambda ids=ids: session.run(None, {QUERY: ids})) for ids in inputs]


def print_lstm() -> None:
    """Print forward and backward of the peephole LSTM beside `nn.LSTM`; rounds take turns."""
    table = Table("texts x steps x width", "hidden", "peephole, ms", "nn.LSTM, ms", "speed of nn.LSTM's")
    for texts, steps, width in ((64, 20, 300), (256, 10, 300)):
        for hidden in (128, 300):
            x = torch.randn(texts, steps, width, requires_grad=True)
            lengths = torch.full((texts,), steps)
            own, known = PeepholeLstm(width, hidden), nn.LSTM(width, hidden, batch_first=True)
            runs = (
                lambda own=own, x=x, lengths=lengths: own(x, lengths).sum().backward(),
                lambda known=known, x=x: known(x)[1][0].sum().backward(),
            )
            for run in runs:
                run()
            ours, theirs = np.median([[once(run) for run in runs] for _ in range(3 * ROUNDS)], axis=0)
            size = f"{texts} x {steps} x {width}"
            table.add_row(
                size, str(hidden), f"{ours * 1e3:.1f}", f"{theirs * 1e3:.1f}", f"{theirs / ours:.2f}"
            )
    Console(width=120).print(table)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
