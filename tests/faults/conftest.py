"""A small workspace with every stage done, and programs that run on copies of it until they are killed."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml

from watchrank.deployment.local_server import LocalTriton
from watchrank.workspace import Workspace

from .served import Served

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]

SMALL = {
    "simulation": {"impressions": 4_000, "users": 120, "videos": 150, "channels": 20, "days": 8},
    "training": {"epochs": 3, "batch_size": 256, "checkpoint_steps": 2},
    "ranking": {"hidden": "256", "quantiles": 16},
    "candidates": {"dim": 16},
    "candidate_training": {"epochs": 4, "batch_size": 256, "checkpoint_steps": 2},
    "text_training": {"epochs": 4, "batch_size": 64, "checkpoint_steps": 2},
    "index": {"k": 50},
}


@dataclass
class Run:
    """A program on its way, or at its end."""

    runner: subprocess.Popen[str]
    pid: int
    output: Path
    code: int | None = None

    def wait(self) -> int:
        """Return the exit code; that of a killed program is -9."""
        if self.code is None:
            self.code = int(self.runner.stdout.readline())
        return self.code

    def kill_after(self, seconds: float) -> bool:
        """Kill the program's process group after a while; return whether it was still running."""
        time.sleep(seconds)
        with suppress(ProcessLookupError):  # it has ended, or is not yet a group of its own
            os.killpg(self.pid, signal.SIGKILL)
        return self.wait() == -signal.SIGKILL

    @property
    def stdout(self) -> str:
        """What the program answered."""
        return (self.output / "stdout").read_text()

    @property
    def stderr(self) -> str:
        """What the program said beside."""
        return (self.output / "stderr").read_text()


class Runner:
    """Starts programs, each in a fork of a process that has imported everything; one at a time."""

    def __init__(self, folder: Path) -> None:
        """Start the process, whose programs say what they have to say below `folder`."""
        self.folder = folder
        self.last: Run | None = None
        command = [sys.executable, str(HERE / "runner.py")]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, cwd=REPOSITORY, **pipes)
        assert self.process.stdout.readline() == "ready\n"

    def start(self, program: str) -> Run:
        """Start a Python program."""
        output = self.folder / uuid4().hex
        output.mkdir()
        for stream in ("stdout", "stderr"):
            (output / stream).touch()
        if self.last:  # of a test that failed
            self.last.wait()
        self.process.stdin.write(json.dumps([program, str(output)]) + "\n")
        self.process.stdin.flush()
        self.last = Run(self.process, int(self.process.stdout.readline()), output)
        return self.last

    def end(self, program: str) -> float:
        """Run a program to its end, which must be a good one; return the seconds it took."""
        begun = time.monotonic()
        run = self.start(program)
        assert run.wait() == 0, run.stderr
        return time.monotonic() - begun

    def stop(self) -> None:
        """Stop the process."""
        self.process.stdin.close()
        self.process.wait()


@pytest.fixture(scope="session")
def make_runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Runner]]:
    """Return a function that makes a runner."""
    runners: list[Runner] = []

    def make() -> Runner:
        runners.append(Runner(tmp_path_factory.mktemp("outputs")))
        return runners[-1]

    yield make
    for runner in runners:
        runner.stop()


@pytest.fixture(scope="session")
def runner(make_runner: Callable[[], Runner]) -> Runner:
    return make_runner()


@pytest.fixture(scope="session")
def second_runner(make_runner: Callable[[], Runner]) -> Runner:
    return make_runner()


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration for a log of a few thousand impressions."""
    file = tmp_path_factory.mktemp("settings") / "small.yaml"
    file.write_text(yaml.safe_dump(SMALL))
    return file


@pytest.fixture(scope="session")
def watchrank(settings: Path) -> Callable[..., str]:
    """Return a function that gives the program of a command on a workspace."""

    def program(command: str, workspace: Path, *arguments: object) -> str:
        words = ["watchrank", command, "--workspace", str(workspace), "--config", str(settings)]
        words += map(str, arguments)
        return f"import sys\nsys.argv = {words!r}\nfrom watchrank.cli import main\nmain()"

    return program


@pytest.fixture(scope="session")
def built(
    runner: Runner, watchrank: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> Workspace:
    """A workspace with every stage done, up to release 1.

    Its `earlier` log lacks the last day and says otherwise what was watched on the first: `before` is a
    workspace with the events and features of it, which those of `log` come on top of.
    """
    place = Workspace(tmp_path_factory.mktemp("built"))
    runner.end(watchrank("simulate", place.root))
    before = Workspace(place.root / "before")
    shutil.copytree(place.log, before.log)
    _make_earlier(before.log)
    for command in ("ingest", "features"):
        runner.end(watchrank(command, before.root))
    for name in ("events", "features"):
        shutil.copytree(before.root / name, place.root / name)
    for command in (
        *("ingest", "features", "dataset", "candidate-dataset", "search-dataset"),
        *("train", "train-candidates", "train-text"),
    ):
        runner.end(watchrank(command, place.root))
    for folder in (place.evaluation, place.candidate_evaluation, place.text_evaluation):
        folder.mkdir()
        (folder / "metrics.json").write_text('{"models": {}}')
    runner.end(watchrank("export", place.root))
    return place


def _make_earlier(log: Path) -> None:
    for file in [*log.glob("impressions/*.parquet"), *log.glob("searches/*.parquet")]:
        rows = pq.read_table(file)
        days = rows["timestamp"].cast(pa.date32())
        if "watch_seconds" in rows.column_names:
            seconds, place = rows["watch_seconds"], rows.column_names.index("watch_seconds")
            longer = pc.multiply(seconds, pc.if_else(pc.equal(days, pc.min(days)), 2.0, 1.0))
            rows = rows.set_column(place, "watch_seconds", longer.cast(seconds.type))
        pq.write_table(rows.filter(pc.less(days, pc.max(days))), file)


@pytest.fixture(scope="session")
def served(
    built: Workspace,
    runner: Runner,
    watchrank: Callable[..., str],
    triton_venv: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    """Releases 1 and 2, the same but for their numbers, and a server that serves none yet."""
    place = Workspace(tmp_path_factory.mktemp("served"))
    for part in ("releases", "features", "feature_store"):
        shutil.copytree(built.root / part, place.root / part)
    runner.end(watchrank("refresh", place.root))
    with LocalTriton(
        venv=triton_venv, repository=place.model_repository, state=place.triton, timeout_seconds=120
    ) as server:
        yield Served(place, server, watchrank)


@pytest.fixture(scope="session")
def kills(request: pytest.FixtureRequest) -> int:
    """How often a program is killed at least."""
    number: int = request.config.getoption("--kills")
    return number


@pytest.fixture(scope="session")
def reading(second_runner: Runner) -> Callable[[Path], AbstractContextManager[None]]:
    """Return a context manager in which another process reads a workspace all the time.

    At the end nothing that it read was broken.
    """

    @contextmanager
    def read(workspace: Path) -> Iterator[None]:
        arguments = ["reader.py", str(workspace)]
        program = f"import sys\nsys.argv = {arguments!r}\nexec({(HERE / 'reader.py').read_text()!r})"
        run = second_runner.start(program)
        deadline = time.monotonic() + 60
        while not run.stdout and time.monotonic() < deadline:
            time.sleep(0.01)
        try:
            yield
        finally:
            with suppress(ProcessLookupError):
                os.kill(run.pid, signal.SIGTERM)
            run.wait()
        assert run.code == 0, run.stderr

    return read


def random_of(name: str) -> random.Random:
    """Return the random numbers of a test, the same in every run."""
    return random.Random(name)
