"""The ONNX index beside FAISS: recall, latency of one query at a time, memory and time to build.

Vectors are drawn around 1,000 to 2,000 centres of unequal weight and have unequal lengths; queries likewise.
Each index is written to a file and searched in a process of its own. The ONNX graphs also leave out 50
watched videos a query; FAISS does not.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import faiss
import numpy as np
import onnx
import onnxruntime as ort
from rich.console import Console
from rich.table import Table

from watchrank.config import ExportSettings
from watchrank.export.index import LISTS, as_model, exact_graph, inverted_file_graph
from watchrank.export.inverted_file import build_inverted_file

WIDTH, K = 64, 200
QUERIES = 500
SECONDS_A_SEARCH = 2
IVF_LISTS = 2_048
PROBES = (2, 4, 8, 16, 32, 64, 128)
Vectors = np.ndarray
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one index does: ids found [Q, K], milliseconds a query, growth of the process in MB."""

    found: np.ndarray
    milliseconds: np.ndarray
    megabytes: float


def main() -> None:
    """Print a table for each size of the catalogue."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--threads", type=int, default=1, help="of a search; building takes all cores")
    arguments = parser.parse_args()
    for count in arguments.videos:
        table = Table(title=f"{count:,} × {WIDTH}, top {K}, threads: {arguments.threads}")
        for name in ("index", f"recall@{K}", "p50, ms", "p99, ms", "memory, MB", "build, s"):
            table.add_column(name, justify="left" if name == "index" else "right")
        with tempfile.TemporaryDirectory() as folder:
            compare(count, arguments.threads, Path(folder), table)
        Console(width=110).print(table)


def compare(count: int, threads: int, folder: Path, table: Table) -> None:
    """Add a row for each index and number of probes."""
    vectors, queries = clustered(count)
    flat = faiss.IndexFlatIP(WIDTH)
    flat.add(vectors)
    true = flat.search(queries, K)[1]

    def add(name: str, built: float, measured: Measured) -> None:
        recall = np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(measured.found, true, strict=False)])
        p50, p99 = np.percentile(measured.milliseconds, [50, 99])
        row = (f"{recall:.4f}", f"{p50:.3f}", f"{p99:.3f}", f"{measured.megabytes:,.0f}", f"{built:.0f}")
        table.add_row(name, *row)
        print(name, *row, sep=" | ", flush=True)

    ids = np.arange(count)
    graph, built = timed(lambda: exact_graph(vectors, ids, K))
    add("exact", built, in_own_process(search_onnx, saved_onnx(graph, folder), queries, threads))
    lists = round(LISTS * count**0.5)
    index, built = timed(lambda: build_inverted_file(vectors, ids, lists, K))
    name = "{} lists of {}".format(*index.ids.shape)
    for probes, half in [(probes, False) for probes in PROBES[1:]] + [(16, True), (64, True)]:
        path = saved_onnx(inverted_file_graph(index, K, probes, half), folder)
        measured = in_own_process(search_onnx, path, queries, threads)
        add(f"{name}{', float16' * half}, probes {probes}", built, measured)
    del graph, index
    kinds = {f"IVF{IVF_LISTS},Flat": ("nprobe", PROBES), "HNSW16,Flat": ("efSearch", (200, 400))}
    for kind, (parameter, values) in kinds.items():
        path, built = timed(lambda kind=kind: saved_faiss(kind, vectors, folder))
        for value in values:
            measured = in_own_process(search_faiss, path, queries, threads, parameter, value)
            add(f"FAISS {kind}, {parameter} {value}", built, measured)


def clustered(count: int) -> tuple[Vectors, Vectors]:
    """Return catalogue [count, D] and queries [Q, D]."""
    draw = np.random.default_rng(0)
    centres = draw.standard_normal((max(1_000, count // 500), WIDTH), np.float32)
    weights = draw.lognormal(0, 0.7, len(centres))

    def sample(size: int) -> Vectors:
        chosen = draw.choice(len(centres), size, p=weights / weights.sum())
        vectors = centres[chosen] + 0.6 * draw.standard_normal((size, WIDTH), np.float32)
        return (vectors * np.exp(0.2 * draw.standard_normal((size, 1)))).astype(np.float32)

    return sample(count), sample(QUERIES)


def saved_onnx(graph: onnx.GraphProto, folder: Path) -> Path:
    """Write the graph; a graph before it is overwritten."""
    onnx.save(as_model(graph, ExportSettings()), folder / "index.onnx")
    return folder / "index.onnx"


def saved_faiss(kind: str, vectors: Vectors, folder: Path) -> Path:
    """Build an index of FAISS' own and write it."""
    index = faiss.index_factory(WIDTH, kind, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    faiss.write_index(index, str(folder / "index.faiss"))
    return folder / "index.faiss"


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """Return what work returns, and its seconds."""
    started = time.perf_counter()
    answer = work()
    return answer, time.perf_counter() - started


def in_own_process(work: Callable[..., Measured], *arguments: object) -> Measured:
    """Run work where no other index takes memory or threads."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def search_onnx(path: Path, queries: Vectors, threads: int) -> Measured:
    """Search with ONNX Runtime on the CPU."""
    before = resident()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    unknown = np.arange(2**59, 2**59 + 50)[None]
    nothing = np.empty((1, 0), np.int64)

    def search(query: Vectors) -> np.ndarray:
        feed = {"user_vector": query, "watched_video_ids": unknown, "excluded_video_ids": nothing}
        return session.run(["video_ids", "scores"], feed)[0]

    return measure(search, queries, before)


def search_faiss(path: Path, queries: Vectors, threads: int, parameter: str, value: int) -> Measured:
    """Search with FAISS."""
    before = resident()
    faiss.omp_set_num_threads(threads)
    index = faiss.read_index(str(path))
    faiss.ParameterSpace().set_index_parameter(index, parameter, value)
    return measure(lambda query: index.search(query, K)[1], queries, before)


def measure(search: Callable[[Vectors], np.ndarray], queries: Vectors, before: float) -> Measured:
    """Search each query alone, again and again for some seconds; the first round counts for recall only."""
    found = np.concatenate([search(query[None]) for query in queries])
    megabytes = resident() - before
    times: list[float] = []
    end = time.perf_counter() + SECONDS_A_SEARCH
    while time.perf_counter() < end:
        query = queries[len(times) % len(queries)][None]
        times.append(timed(lambda query=query: search(query))[1] * 1e3)
    return Measured(found=found, milliseconds=np.array(times), megabytes=megabytes)


def resident() -> float:
    """Return the memory of this process in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


if __name__ == "__main__":
    main()
