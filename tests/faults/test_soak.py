"""Mixed load for as long as one likes: no request fails, and after the warm-up no process grows.

The service reads features from a real Redis.
"""

import json
import os
import random
import signal
import statistics
import time
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from redis import Redis

from watchrank.deployment.local_server import Ports

from .conftest import REPOSITORY, SMALL, Runner
from .served import Served
from .test_killed import MATERIALISE

pytestmark = pytest.mark.faults

CALLERS = 4
USERS = range(1, 1 + SMALL["simulation"]["users"])
"""Whom the store knows."""

WARM_UP = 0.25
"""Share of the time after which nothing may grow any more."""

GROWTH, LEAST_GROWTH = 0.05, 16 * 2**20
"""What counts as none, of the resident memory: 5 %, or 16 MiB where that is more."""

WORDS = ["cats", "blue cats", "news of today", "猫", "x" * 50, "how to cook"]


def question(draw: random.Random) -> tuple[str, bytes | None]:
    """Return the path and the body of a request."""
    user = draw.choice([draw.choice(USERS), draw.randrange(10**12)])
    kind = draw.randrange(5)
    if kind == 0:
        query = urllib.parse.urlencode({"query": draw.choice(WORDS), "k": draw.randint(1, 20)})
        return f"/search?{query}", None
    if kind == 1:
        return f"/recommend/{user}?k={draw.randint(1, 50)}", None
    asked = {
        "user_ids": [user, *(draw.choice(USERS) for _ in range(draw.randrange(8)))],
        "k": draw.randint(1, 50),
        "excluded": [draw.randrange(150) for _ in range(draw.choice([0, 3, 40]))],
        "diversity": draw.choice([0, 0.3, 1]),
        "channel_limit": draw.choice([0, 2]),
    }
    return "/recommend", json.dumps(asked).encode()


def resident(pids: list[int]) -> int:
    """Return the bytes of memory that processes hold."""
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    return pages * os.sysconf("SC_PAGE_SIZE")


def group(leader: int) -> list[int]:
    """Return the processes of a process group."""
    return [int(path.name) for path in Path("/proc").glob("[0-9]*") if _group_of(path) == leader]


def _group_of(process: Path) -> int | None:
    try:
        return os.getpgid(int(process.name))
    except ProcessLookupError:
        return None


def ask(url: str, until: float, seed: int) -> tuple[int, list[str]]:
    """Ask until a time; return how many requests were answered, and what was wrong."""
    draw, answered, faults = random.Random(seed), 0, []
    while time.monotonic() < until:
        path, body = question(draw)
        headers = {"Content-Type": "application/json"} if body else {}
        request = urllib.request.Request(url + path, body, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                found = json.load(answer)
        except urllib.error.HTTPError as error:
            faults.append(f"{path}: {error.code} {error.read().decode()}")
            continue
        for each in found if isinstance(found, list) else [found]:
            if not (each["video_ids"] or "query" in each) or is_without(each):
                faults.append(f"{path}: {each}")
        answered += 1
    return answered, faults


def is_without(answer: dict[str, object]) -> bool:
    """Return whether an answer does without Triton, or without the features of a user who has some."""
    match answer.get("fallback"):
        case "triton":
            return True
        case "features":
            return answer["user_id"] in USERS
    return False


def test_a_soak_leaves_memory_as_it_is_and_fails_no_request(
    served: Served,
    runner: Runner,
    redis: str,
    request: pytest.FixtureRequest,
) -> None:
    seconds, port = 60 * request.config.getoption("--soak-minutes"), Ports.free().http
    runner.end(served.program("deploy", "--release", 1))
    repo = REPOSITORY / "feature_repo" / "feature_store_redis.yaml"
    places = {"repo": str(repo), "features": str(served.place.features)}
    to_redis = f"import os\nos.environ['WATCHRANK_REDIS'] = {redis!r}\n"
    runner.end(to_redis + MATERIALISE.format(**places, state=str(served.place.feature_store)))
    program = to_redis + served.program(
        "serve-http",
        f"--feature-repo={repo}",
        f"--set=serving.port={port}",
        "--set=serving.timeout_seconds=30",
        "--set=serving.log_share=0",
    )
    service, url = runner.start(program), f"http://127.0.0.1:{port}"
    store = Redis.from_url(f"redis://{redis}").info("server")["process_id"]
    processes = {"service": [service.pid], "Triton": group(served.server.pid), "Redis": [store]}
    deadline = time.monotonic() + 120
    while f"{url}/" not in service.stdout and time.monotonic() < deadline:
        time.sleep(0.1)
    begun = time.monotonic()
    samples: dict[str, list[int]] = {name: [] for name in processes}
    with ThreadPoolExecutor(CALLERS) as pool:
        callers = [pool.submit(ask, url, begun + seconds, seed) for seed in range(CALLERS)]
        while time.monotonic() < begun + seconds:
            time.sleep(seconds / 120)
            for name, pids in processes.items():
                samples[name].append(resident(pids))
    answered, faults = zip(*(caller.result() for caller in callers), strict=True)
    os.kill(service.pid, signal.SIGINT)
    service.wait()
    assert [fault for each in faults for fault in each] == []
    for name, sizes in samples.items():
        warm = sizes[int(len(sizes) * WARM_UP) :]
        part = max(len(warm) // 6, 1)
        before, after = statistics.median(warm[:part]), statistics.median(warm[-part:])
        print(f"{name}: {before / 2**20:.1f} MiB after the warm-up, {after / 2**20:.1f} at the end")
        assert after - before <= max(GROWTH * before, LEAST_GROWTH)
    print(f"{sum(answered):,} requests in {seconds:.0f} s")
