"""The online store with a million users: what filling it takes, and what reading one user takes.

The users are those of a simulated log, each many times over under ids of its own, so that their lists are as
long as a log makes them. SQLite and Redis (a server of its own, started here) are filled one after the other
by `feature_store.materialise`, each in a process of its own. Reads of single users then take turns: by
Feast's SDK alone, by `online_user_features`, which makes tensors of its answer, and by what `recommend`
calls, which reads beside the event loop and gives up at a deadline.
"""

import asyncio
import os
import resource
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from datetime import UTC, date, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import ibis
import numpy as np
import typer
from feast import FeatureStore
from rich.console import Console
from rich.table import Table as Lines
from simulated import FEATURE_REPO, ROOT, simulated_workspace

from watchrank.config import EngineSettings
from watchrank.engine import connect
from watchrank.feature_store import USER_TABLES, feature_refs, materialise, online_user_features, open_store
from watchrank.features.build import PROFILES
from watchrank.features.files import file_of, files_of, partition_of, record_of, write
from watchrank.schema import CREATED_TIMESTAMP, EVENT_TIMESTAMP, FEATURE_TABLES, USER_PROFILE, Table
from watchrank.serving.features import OnlineFeatures

REPOS = {"SQLite": FEATURE_REPO, "Redis": FEATURE_REPO / "feature_store_redis.yaml"}
IMPRESSIONS = 1_000_000
SECONDS = 5.0
"""Deadline of a read."""


def many_users(features: Path, folder: Path, users: int) -> None:
    """Write the feature tables with the newest row of each user, repeated until there are `users`."""
    con = connect(EngineSettings())
    known = con.read_parquet(files_of(features, USER_PROFILE)).user_id.max().to_pyarrow().as_py() + 1
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copyfile(record_of(features), record_of(folder))
    for table in FEATURE_TABLES:
        rows = con.read_parquet(files_of(features, table))
        if table in USER_TABLES:
            newest = ibis.window(
                group_by="user_id", order_by=[ibis.desc(EVENT_TIMESTAMP), ibis.desc(CREATED_TIMESTAMP)]
            )
            rows = rows.mutate(nth=ibis.row_number().over(newest)).filter(ibis._.nth == 0).drop("nth")
            copies = ibis.range(0, -(-users // known)).unnest().name("copy").as_table()
            rows = rows.cross_join(copies)
            rows = rows.mutate(user_id=rows.user_id + rows["copy"] * known).filter(ibis._.user_id < users)
        write(con, rows, table, _file(folder, table))
    con.disconnect()


def _file(folder: Path, table: Table) -> Path:
    if table in PROFILES:
        return file_of(folder, table)
    return partition_of(folder, table, date(2026, 1, 1))


def fill(repo: Path, features: Path, state: Path) -> tuple[float, float]:
    """Materialise; return the seconds and the gigabytes of memory at the peak."""
    store = open_store(repo, features, state)
    started = time.perf_counter()
    materialise(store, datetime.now(UTC))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return time.perf_counter() - started, peak


def read(store: FeatureStore, users: np.ndarray) -> dict[str, np.ndarray]:
    """Return the milliseconds of single reads, by way."""
    refs, features = feature_refs(USER_TABLES), OnlineFeatures(store, retry_seconds=1)
    with asyncio.Runner() as runner:
        ways: dict[str, Callable[[int], object]] = {
            "Feast's SDK": lambda user: store.get_online_features(refs, {"user_id": [user]}).to_dict(),
            "as tensors": lambda user: online_user_features(store, [user]),
            "recommend": lambda user: runner.run(features.read([user], SECONDS)),
        }
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for user in users.tolist():
            for way, ask in ways.items():
                started = time.perf_counter()
                ask(user)
                taken[way].append(1_000 * (time.perf_counter() - started))
    features.close()
    return {way: np.array(of_way[len(of_way) // 10 :]) for way, of_way in taken.items()}


@contextmanager
def redis() -> Iterator[None]:
    """Let a Redis of its own serve in the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--port", str(port), "--save", "", "--appendonly", "no", "--bind", "127.0.0.1"]
    with subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL) as server:
        os.environ["WATCHRANK_REDIS"] = f"127.0.0.1:{port}"
        time.sleep(1)
        try:
            yield
        finally:
            server.terminate()


def main(
    users: Annotated[int, typer.Option(help="in the store")] = 1_000_000,
    reads: Annotated[int, typer.Option(help="of single users, by each way")] = 2_000,
) -> None:
    """Print both tables."""
    place, root = simulated_workspace(IMPRESSIONS), ROOT / "online"
    many_users(place.features, root / "features", users)
    asked = np.random.default_rng(0).integers(0, users, reads)
    filled = Lines("store", "seconds", "users/s", "peak GB", title=f"Materialising {users:,} users")
    answered = Lines("store", "way", "p50 ms", "p99 ms", title="Reading the features of one user")
    with redis():
        for name, repo in REPOS.items():
            state = root / f"state_{name}"
            shutil.rmtree(state, ignore_errors=True)
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                seconds, peak = process.submit(fill, repo, root / "features", state).result()
            filled.add_row(name, f"{seconds:.0f}", f"{users / seconds:,.0f}", f"{peak:.1f}")
            for way, taken in read(open_store(repo, root / "features", state), asked).items():
                answered.add_row(name, way, *(f"{np.percentile(taken, q):.2f}" for q in (50, 99)))
            shutil.rmtree(state)
    console = Console(width=120)
    console.print(filled)
    console.print(answered)


if __name__ == "__main__":
    typer.run(main)
