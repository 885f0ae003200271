"""`recommend` on Triton beside the same work done otherwise, and where the time of a request goes.

    python tests/benchmarks/recommend_latency.py --videos 100000 1000000 --seconds 8

Each request is one user: 200 candidates are ranked, k is 20. The ways, in turn and under the same load:

* Triton: `recommend` of a real server (`LocalTriton`), asked by tritonclient.grpc.aio from one process;
* bare graphs: the release's graphs in onnxruntime in one process, with no server; a thread a caller;
* FastAPI: FAISS, features from numpy arrays, the ranking graph and a sort behind uvicorn, in a process of
  its own, asked with JSON as is usual. FAISS is exact up to 200,000 videos, an IVF of about equal recall
  above;
* Recommender: Feast's features from SQLite, then Triton.

The callers share the machine with what they ask, which counts most against the ways with a server. All
graphs and FAISS use one thread a request. Models are untrained, but of the real architecture; the videos'
vectors are random and clustered, their features drawn from those of a small simulated log.
"""

import argparse
import asyncio
import itertools
import json
import socket
import tempfile
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import aiohttp
import faiss
import numpy as np
import onnxruntime as ort
import tritonclient.grpc.aio as triton
import uvicorn
from fastapi import Body, FastAPI
from rich.console import Console
from rich.table import Table
from simulated import FEATURE_REPO
from synthetic_release import (
    EXPORT,
    INDEX,
    WIDTH,
    Arrays,
    K,
    prepared_workspace,
    requests_of,
    synthetic,
    write_release,
)

from watchrank.config import (
    DeploymentSettings,
)
from watchrank.datasets.ranking import RankingDataset
from watchrank.deployment.deploy import deploy
from watchrank.deployment.local_server import LocalTriton
from watchrank.deployment.model_repository import name_of
from watchrank.export.candidates import USER_VECTOR, tower_inputs
from watchrank.export.index import EXACT_LIMIT, EXCLUDED
from watchrank.export.onnx import export_onnx
from watchrank.export.recommend import MODEL, RELEASE, ReleaseGraphs
from watchrank.feature_store import materialise, online_user_features, open_store
from watchrank.schema import WATCH_HISTORY
from watchrank.serving.client import TritonClient, infer_inputs
from watchrank.serving.question import Question
from watchrank.serving.recommend import Recommender
from watchrank.storage import atomic_path, write_json
from watchrank.workspace import Workspace

CONCURRENCY = (1, 8, 32)
ROUNDS = 4
WARM_SECONDS = 0.3
IVF_LISTS = 2_048
PROBES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
STEPS = ("candidate_generation", "video_features", "ranking", "rerank")
PARTS = ("queue", "compute_input", "compute_infer")
"""Of a step's time; its output overlaps with the next step, so it counts to the ensemble."""

Load = Callable[[int, float], Awaitable[list[float]]]
"""Asks with so many callers for so many seconds; returns the seconds of each request."""


def main() -> None:
    """Print two tables for each size of the catalogue."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--seconds", type=float, default=8, help="of each load")
    parser.add_argument("--keep", type=Path, help="folder that keeps the releases for the next run")
    parser.add_argument("--venv", type=Path, default=Path(".venv-triton"), help="the Triton environment")
    arguments = parser.parse_args()
    place = prepared_workspace()
    with tempfile.TemporaryDirectory() as temporary:
        for videos in arguments.videos:
            folder = (arguments.keep or Path(temporary)) / f"videos-{videos}"
            if not folder.exists():
                make_all(place, videos, folder)
            compare(place, videos, folder, arguments.venv, arguments.seconds)


# -- What is compared ---------------------------------------------------------------------------------


def make_all(place: Workspace, videos: int, folder: Path) -> None:
    """Write a release and what the FastAPI service reads."""
    made = synthetic(place, videos, first_id=0, seconds=60)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder) as fresh:
        release = write_release(made, fresh / "releases")
        python = fresh / "python"
        python.mkdir()
        of_tower = tower_inputs(made.tower.tower.names)
        export_onnx(made.tower, of_tower, [USER_VECTOR], python / "tower.onnx", EXPORT)
        np.savez(python / "features.npz", video_id=made.ids, **made.features)
        vectors = made.tower.vectors.detach().numpy()
        exact = faiss.IndexFlatIP(WIDTH)
        exact.add(vectors)
        index = exact
        if videos > EXACT_LIMIT:
            index = faiss.index_factory(WIDTH, f"IVF{IVF_LISTS},Flat", faiss.METRIC_INNER_PRODUCT)
            index.train(vectors)
            index.add(vectors)
        recalls = matched_recall(index, exact, release, python, requests_of(made.data, release, videos))
        faiss.write_index(index, str(python / "index.faiss"))
        write_json(fresh / "recalls.json", recalls)


def matched_recall(
    index: faiss.Index, exact: faiss.Index, release: Path, python: Path, requests: list[Arrays]
) -> dict[str, float]:
    """Let an IVF search the fewest lists that find as much as the release's graph; return what both find."""
    graphs, tower = ReleaseGraphs(release), ort.InferenceSession(python / "tower.onnx")
    true = [nearest(exact, user_vector(tower, request), request) for request in requests]

    def recall(found: Iterator[np.ndarray]) -> float:
        return float(np.mean([np.isin(t, f).mean() for t, f in zip(true, found, strict=True)]))

    model = "candidate_generation"
    recalls = {"graph": recall(graphs.run(model, request)["video_ids"][0] for request in requests)}
    for probes in PROBES:
        if index is not exact:
            index.nprobe = probes
        recalls["FAISS"] = recall(nearest(index, user_vector(tower, each), each) for each in requests)
        if recalls["FAISS"] > recalls["graph"] - 0.002:
            break
    return recalls | ({"FAISS' probes": index.nprobe} if index is not exact else {})


# -- The same in Python -------------------------------------------------------------------------------


def serve_in_python(folder: Path, port: int) -> None:
    """Answer `POST /recommend` with {"inputs": {name: list}, "k"}; runs in a process of its own."""
    faiss.omp_set_num_threads(1)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    tower = ort.InferenceSession(folder / "python" / "tower.onnx", options)
    ranker = ort.InferenceSession(folder / "releases" / "000001" / "ranking" / "model.onnx", options)
    index = faiss.read_index(str(folder / "python" / "index.faiss"))
    of_videos = dict(np.load(folder / "python" / "features.npz"))
    ranked = {spec.name: spec.type for spec in ranker.get_inputs()}
    kinds = ranked | {spec.name: spec.type for spec in tower.get_inputs()}
    app = FastAPI()

    @app.post("/recommend")
    def recommend(inputs: dict[str, list[Any]] = Body(), k: int = Body()) -> dict[str, list[Any]]:
        user = {
            name: np.array(values, np.float32 if kinds[name] == "tensor(float)" else np.int64)[None]
            for name, values in inputs.items()
        }
        rows = nearest(index, user_vector(tower, user), user)[None]
        features = {name: of_videos[name][rows] for name in ranked if name in of_videos}
        (seconds,) = ranker.run(None, {name: features.get(name, user.get(name)) for name in ranked})
        best = np.argsort(-seconds[0])[:k]
        videos = of_videos["video_id"][rows[0, best]]
        return {"video_ids": videos.tolist(), "expected_watch_seconds": seconds[0, best].tolist()}

    uvicorn.run(app, port=port, log_level="warning")


def user_vector(tower: ort.InferenceSession, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return [1, D]."""
    vector: np.ndarray = tower.run(None, {spec.name: inputs[spec.name] for spec in tower.get_inputs()})[0]
    return vector


def nearest(index: faiss.Index, user: np.ndarray, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the rows of the candidates, which are their ids too, without the watched ones."""
    rows = index.search(user, INDEX.k + WATCH_HISTORY)[1][0]
    return rows[(rows >= 0) & ~np.isin(rows, inputs["watched_video_ids"])][: INDEX.k]


@contextmanager
def python_service(folder: Path) -> Iterator[str]:
    """Yield the address of the service."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = get_context("spawn").Process(target=serve_in_python, args=(folder, port), daemon=True)
    process.start()
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/openapi.json", timeout=1).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/recommend"
    finally:
        process.terminate()
        process.join()


# -- Measuring ----------------------------------------------------------------------------------------


def compare(place: Workspace, videos: int, folder: Path, venv: Path, seconds: float) -> None:
    """Print the tables of one size."""
    release = folder / "releases" / "000001"
    recalls = json.loads((folder / "recalls.json").read_text())
    print(f"{videos:,} videos, recall@{INDEX.k} of the exact candidates:", recalls, flush=True)
    with tempfile.TemporaryDirectory() as state, python_service(folder) as address:
        repository = Path(state) / "repository"
        with LocalTriton(venv=venv, repository=repository, state=Path(state)) as server:
            settings = server.settings.model_copy(update={"timeout_seconds": 120})
            deploy(release, repository, settings)
            bench = Bench(place, release, videos, settings, address)
            asyncio.run(bench.run(seconds))


class Bench:
    """All ways to recommend on one release."""

    def __init__(
        self, place: Workspace, release: Path, videos: int, settings: DeploymentSettings, address: str
    ) -> None:
        data = RankingDataset.open(place.dataset)
        self.videos, self.settings, self.address = videos, settings, address
        self.number = int(release.name)
        self.graphs = ReleaseGraphs(release)
        self.requests = requests_of(data, release, videos)
        self.users = np.unique(data.split("test").requests["user_id"]).tolist()
        self.store = open_store(FEATURE_REPO, place.features, place.feature_store)
        materialise(self.store, datetime.now(UTC))

    async def run(self, seconds: float) -> None:
        """Print both tables."""
        async with (
            triton.InferenceServerClient(self.settings.grpc_url) as server,
            TritonClient(self.settings) as client,
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as web,
        ):
            recommender = Recommender(self.store, client)
            requests, users = itertools.cycle(self.requests), itertools.cycle(self.users)
            read = {*self.graphs.inputs("candidate_generation"), *self.graphs.inputs("ranking")}
            read = (read - {EXCLUDED}) & self.requests[0].keys()

            async def ask_triton() -> None:
                await infer(server, next(requests))

            async def ask_python() -> None:
                request = next(requests)
                inputs = {name: request[name][0].tolist() for name in read}
                async with web.post(self.address, json={"inputs": inputs, "k": K}) as answer:
                    answer.raise_for_status()
                    await answer.json()

            async def ask_recommender() -> None:
                await recommender.recommend([next(users)], Question(k=K))

            ways: dict[str, Load] = {
                "Triton": async_load(ask_triton),
                "bare graphs": threaded_load(lambda: self.graphs.run(MODEL, next(requests))),
                "FastAPI": async_load(ask_python),
                "Recommender": async_load(ask_recommender),
            }
            Console(width=110).print(await self.compared(ways, seconds))
            Console(width=110).print(await self.dissected(server))

    async def compared(self, ways: Mapping[str, Load], seconds: float) -> Table:
        """Load the ways in turn, some rounds of them, for each number of callers."""
        table = Table(
            title=f"recommend, {self.videos:,} videos, {INDEX.k} candidates, k = {K}; ratios: lowest and "
            f"highest of {ROUNDS} rounds"
        )
        for name in ("callers", "way", "p50, ms", "p99, ms", "a second", "p50 / Triton", "a second / Triton"):
            table.add_column(name, justify="left" if name == "way" else "right")
        for callers in CONCURRENCY:
            times: dict[str, list[list[float]]] = defaultdict(list)
            rates: dict[str, list[float]] = defaultdict(list)
            for _ in range(ROUNDS):
                for way, load in ways.items():
                    await load(callers, WARM_SECONDS)
                    started = time.perf_counter()
                    times[way].append(await load(callers, seconds / ROUNDS))
                    rates[way].append(len(times[way][-1]) / (time.perf_counter() - started))
            medians = {way: [float(np.median(each)) for each in rounds] for way, rounds in times.items()}
            for way, rounds in times.items():
                p50, p99 = np.percentile(np.concatenate(rounds), [50, 99]) * 1e3
                table.add_row(
                    *(str(callers), way, f"{p50:.2f}", f"{p99:.2f}", f"{np.mean(rates[way]):,.0f}"),
                    *(ratios(each[way], each["Triton"]) for each in (medians, rates)),
                )
            table.add_section()
        return table

    async def dissected(self, server: triton.InferenceServerClient) -> Table:
        """One request at a time: what the server's statistics say of each step, beside the bare graph."""
        models = {step: name_of(step, self.number) for step in STEPS}
        before = {name: await statistics(server, model) for name, model in models.items()}
        asked, read, bare = [], [], defaultdict(list)
        for request, user in zip(self.requests, itertools.cycle(self.users), strict=False):
            asked.append(await awaited_seconds(infer(server, request)))
            read.append(timed(lambda user=user: online_user_features(self.store, [user])))
            self.run_bare(request, bare)
        after = {name: await statistics(server, model) for name, model in models.items()}
        spent = {
            name: {part: (after[name][part] - before[name][part]) / len(asked) / 1e6 for part in after[name]}
            for name in models
        }
        means = {"client": asked, "feast": read} | bare
        return self.stages(spent, {name: float(np.mean(each)) * 1e3 for name, each in means.items()})

    def stages(self, spent: Mapping[str, Mapping[str, float]], means: Mapping[str, float]) -> Table:
        """Make the table of stages.

        Args:
            spent: milliseconds in the server, by model and part.
            means: milliseconds of the whole call of Triton, of Feast, and of each bare graph.
        """
        table = Table(title=f"where the time goes, {self.videos:,} videos, 1 caller: mean ms of a request")
        for name in ("stage", "whole", "share", *(part.removeprefix("compute_") for part in PARTS), "bare"):
            table.add_column(name, justify="left" if name == "stage" else "right")
        steps = {step: sum(spent[step][part] for part in PARTS) for step in STEPS}
        whole = means["client"] + means["feast"]

        def add(stage: str, milliseconds: float, *rest: str) -> None:
            table.add_row(stage, f"{milliseconds:.2f}", f"{milliseconds / whole:.0%}", *rest)

        add("Feast, SQLite", means["feast"])
        for step in STEPS:
            add(step, steps[step], *(f"{spent[step][part]:.2f}" for part in PARTS), f"{means[step]:.2f}")
        add("client, gRPC, ensemble, outputs", means["client"] - sum(steps.values()))
        add("all", whole, "", "", "", f"{sum(means[step] for step in STEPS):.2f}")
        return table

    def run_bare(self, request: Mapping[str, np.ndarray], times: dict[str, list[float]]) -> None:
        """Run the graphs as the ensemble does; add the seconds of each to `times`."""
        tensors = dict(request)
        for step in self.graphs._steps:
            feed = {key: tensors[name] for key, name in step.input_map.items()}
            started = time.perf_counter()
            answer = self.graphs.run(step.model_name, feed)
            times[step.model_name].append(time.perf_counter() - started)
            tensors |= {name: answer[key] for key, name in step.output_map.items()}


def ratios(values: list[float], others: list[float]) -> str:
    """Return the lowest and the highest ratio of two ways in the same round."""
    each = np.array(values) / np.array(others)
    return f"{each.min():.2f}-{each.max():.2f}"


async def infer(server: triton.InferenceServerClient, request: Mapping[str, np.ndarray]) -> Arrays:
    """Ask `recommend`; no retry."""
    answer = await server.infer(MODEL, infer_inputs(triton.InferInput, request), client_timeout=30)
    names = ("video_ids", "expected_watch_time", "candidate_scores", RELEASE.name)
    return {name: answer.as_numpy(name) for name in names}


async def statistics(server: triton.InferenceServerClient, model: str) -> dict[str, int]:
    """Return the nanoseconds that a model has spent on its requests."""
    answer = await server.get_inference_statistics(model)
    spent = answer.model_stats[0].inference_stats
    return {part: getattr(spent, part).ns for part in PARTS}


def timed(work: Callable[[], object]) -> float:
    """Return how long the work took."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


async def awaited_seconds(work: Awaitable[object]) -> float:
    """Return how long the work took."""
    started = time.perf_counter()
    await work
    return time.perf_counter() - started


def async_load(ask: Callable[[], Awaitable[None]]) -> Load:
    """Callers in one event loop, each of which asks again once it has its answer."""

    async def load(callers: int, seconds: float) -> list[float]:
        end, times = time.perf_counter() + seconds, []

        async def call() -> None:
            while time.perf_counter() < end:
                times.append(await awaited_seconds(ask()))

        await asyncio.gather(*(call() for _ in range(callers)))
        return times

    return load


def threaded_load(ask: Callable[[], object]) -> Load:
    """Callers in a thread each."""

    def call(end: float) -> list[float]:
        times = []
        while time.perf_counter() < end:
            times.append(timed(ask))
        return times

    async def load(callers: int, seconds: float) -> list[float]:
        end, loop = time.perf_counter() + seconds, asyncio.get_running_loop()
        with ThreadPoolExecutor(callers) as pool:
            parts = await asyncio.gather(*(loop.run_in_executor(pool, call, end) for _ in range(callers)))
        return list(itertools.chain(*parts))

    return load


if __name__ == "__main__":
    main()
