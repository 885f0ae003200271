"""Steady load on `recommend` of a real Triton while releases are switched under it.

    python tests/benchmarks/switching_load.py --minutes 10 --every 60 --concurrency 8

Three releases are deployed in turn, one of the switches a rollback. Release r answers with the videos from
r · 10^9 on and with about 10^r seconds, so that every answer shows whether it comes whole from one release:
the ids, the seconds and the `release` of the answer must agree. Callers do not retry. An answer is stale when
it was asked for after a switch was done and comes from another release.

The exit code is 1 when a request or a switch failed, or an answer was mixed or stale.
"""

import argparse
import asyncio
import itertools
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import tritonclient.grpc.aio as triton
from recommend_latency import infer
from rich.console import Console
from rich.table import Table
from synthetic_release import Arrays, prepared_workspace, requests_of, synthetic, write_release

from watchrank.config import DeploymentSettings
from watchrank.datasets.ranking import RankingDataset
from watchrank.deployment.deploy import deploy, release_before
from watchrank.deployment.local_server import LocalTriton
from watchrank.export.recommend import MODEL
from watchrank.schema import PAD_ID

RELEASES = 3
ROLLBACK = 0
ORDER = (2, 3, ROLLBACK, 1)
"""What is deployed after release 1, again and again. From 2 to 1 what served is unloaded at once."""

FIRST_ID = 10**9
FAILURES_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request: when it began and ended, the release that answered, or what was wrong."""

    began: float
    ended: float
    release: int | None
    fault: str = ""


@dataclass(frozen=True, kw_only=True)
class Switch:
    """One deployment: when it began and ended, and what it deployed, or what was wrong."""

    began: float
    ended: float
    release: int
    rollback: bool
    fault: str = ""


@dataclass(kw_only=True)
class Run:
    """What has happened so far."""

    requests: list[Request] = field(default_factory=list)
    switches: list[Switch] = field(default_factory=list)
    done: bool = False


def main() -> None:
    """Print what happened to the requests."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--every", type=float, default=60, help="seconds from one switch to the next")
    parser.add_argument("--concurrency", type=int, default=8, help="callers, each with one request at a time")
    parser.add_argument("--videos", type=int, default=20_000)
    parser.add_argument("--keep", type=Path, help="folder that keeps the releases for the next run")
    parser.add_argument("--venv", type=Path, default=Path(".venv-triton"), help="the Triton environment")
    arguments = parser.parse_args()
    place = prepared_workspace()
    with tempfile.TemporaryDirectory() as temporary:
        releases = (arguments.keep or Path(temporary)) / f"switching-{arguments.videos}"
        for number in range(1, RELEASES + 1):
            if not (releases / f"{number:06d}").exists():
                made = synthetic(place, arguments.videos, number * FIRST_ID, 10.0**number)
                write_release(made, releases)
        data = RankingDataset.open(place.dataset)
        requests = requests_of(data, releases / "000001", arguments.videos, first_id=FIRST_ID)
        repository = Path(temporary) / "repository"
        with LocalTriton(venv=arguments.venv, repository=repository, state=Path(temporary)) as server:
            deploy(releases / "000001", repository, server.settings)
            run = asyncio.run(load_and_switch(arguments, releases, repository, server.settings, requests))
    sys.exit(not report(run))


async def load_and_switch(
    arguments: argparse.Namespace,
    releases: Path,
    repository: Path,
    settings: DeploymentSettings,
    requests: list[Arrays],
) -> Run:
    """Ask all the time, and switch now and then."""
    run, turn = Run(), itertools.cycle(requests)
    async with triton.InferenceServerClient(settings.grpc_url) as server:
        with ProcessPoolExecutor(1, get_context("spawn")) as operator:
            await asyncio.wrap_future(operator.submit(time.perf_counter))  # it takes seconds to start
            callers = [asyncio.create_task(call(server, run, turn)) for _ in range(arguments.concurrency)]
            start = time.perf_counter()
            for number in range(1, int(arguments.minutes * 60 / arguments.every)):
                await asyncio.sleep(start + number * arguments.every - time.perf_counter())
                step = ORDER[(number - 1) % len(ORDER)]
                future = operator.submit(switch, step, releases, repository, settings)
                run.switches.append(await asyncio.wrap_future(future))
            await asyncio.sleep(start + arguments.minutes * 60 - time.perf_counter())
            run.done = True
            await asyncio.gather(*callers)
    return run


def switch(step: int, releases: Path, repository: Path, settings: DeploymentSettings) -> Switch:
    """Deploy a release, or the one before what serves; runs in a process of its own, as an operator does."""
    number = step or release_before(repository, MODEL)
    began, fault = time.perf_counter(), ""
    try:
        deploy(releases / f"{number:06d}", repository, settings)
    except Exception as error:  # noqa: BLE001 - whatever went wrong is the result
        fault = f"{type(error).__name__}: {error}"
    return Switch(
        began=began, ended=time.perf_counter(), release=number, rollback=step == ROLLBACK, fault=fault
    )


async def call(server: triton.InferenceServerClient, run: Run, turn: "itertools.cycle[Arrays]") -> None:
    """Ask again once there is an answer."""
    while not run.done:
        began, release, fault = time.perf_counter(), None, ""
        try:
            answer = await infer(server, next(turn))
            release = int(answer["release"][0, 0])
            fault = mixed(answer)
        except Exception as error:  # noqa: BLE001 - whatever went wrong is the result
            fault = f"{type(error).__name__}: {error}"
            await asyncio.sleep(0.05)
        run.requests.append(Request(began=began, ended=time.perf_counter(), release=release, fault=fault))


def mixed(answer: Arrays) -> str:
    """Return in words why an answer does not come whole from the release that it names, or nothing."""
    release = int(answer["release"][0, 0])
    filled = answer["video_ids"][0] != PAD_ID
    of_ids = np.unique(answer["video_ids"][0, filled] // FIRST_ID)
    of_seconds = np.unique(np.rint(np.log10(answer["expected_watch_time"][0, filled])))
    if of_ids.tolist() == of_seconds.tolist() == [release]:
        return ""
    return f"release {release} with videos of {of_ids.tolist()} and seconds of {of_seconds.tolist()}"


def report(run: Run) -> bool:
    """Print the tables; return whether nothing was wrong."""
    start = min(request.began for request in run.requests)
    failed = [request for request in run.requests if request.release is None]
    false = [request for request in run.requests if request.release is not None and request.fault]
    stale = [request for request in run.requests if request.release and is_stale(request, run.switches)]
    broken = [switch for switch in run.switches if switch.fault]
    table = Table(title="requests while releases are switched")
    for name in ("", "requests", "p50, ms", "p99, ms", "longest, ms"):
        table.add_column(name, justify="right" if name else "left")
    during = [request for request in run.requests if overlaps(request, run.switches)]
    for name, part in (
        ("during switches", during),
        ("in between", [request for request in run.requests if not overlaps(request, run.switches)]),
    ):
        times = np.array([request.ended - request.began for request in part] or [np.nan]) * 1e3
        p50, p99 = np.percentile(times, [50, 99])
        table.add_row(name, f"{len(part):,}", f"{p50:.2f}", f"{p99:.2f}", f"{times.max():.1f}")
    console = Console(width=110)
    console.print(table)
    seconds = [switch.ended - switch.began for switch in run.switches]
    counts = {
        "requests": len(run.requests),
        "failed": len(failed),
        "mixed": len(false),
        "stale": len(stale),
        "switches": len(run.switches),
        "of them rollbacks": sum(switch.rollback for switch in run.switches),
        "failed switches": len(broken),
        "seconds a switch, at most": f"{max(seconds, default=0):.1f}",
    }
    console.print(", ".join(f"{name}: {count}" for name, count in counts.items()))
    for request in [*failed, *false, *stale][:FAILURES_SHOWN]:
        when = f"{request.began - start:.3f}-{request.ended - start:.3f} s"
        console.print(f"{when}, release {request.release}: {request.fault or 'stale'}", markup=False)
    for switch in run.switches if failed or false or stale or broken else []:
        when = f"{switch.began - start:.3f}-{switch.ended - start:.3f} s"
        console.print(f"switch to {switch.release} at {when} {switch.fault}", markup=False)
    return not (failed or false or stale or broken)


def overlaps(request: Request, switches: list[Switch]) -> bool:
    """Return whether the request was under way while a release was switched."""
    return any(switch.began < request.ended and request.began < switch.ended for switch in switches)


def is_stale(request: Request, switches: list[Switch]) -> bool:
    """Return whether another release answered than the one that alone could."""
    done = [switch for switch in switches if switch.ended < request.began and not switch.fault]
    return bool(done and not overlaps(request, switches) and request.release != done[-1].release)


if __name__ == "__main__":
    main()
