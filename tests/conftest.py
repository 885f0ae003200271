import logging
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

from watchrank.config import Config
from watchrank.workspace import Workspace


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=2, help="of each stage, in tests/faults")
    parser.addoption("--soak-minutes", type=float, default=0.5, help="of mixed load, in tests/faults")


REPOSITORY = Path(__file__).resolve().parents[1]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"

SMALL = Config.model_validate(
    {
        "simulation": {"impressions": 24_000, "users": 300, "videos": 400, "channels": 40, "days": 8},
        "training": {"epochs": 2, "batch_size": 1_024},
        "ranking": {"hidden": "256", "quantiles": 16},
        "candidates": {"dim": 32},
        "candidate_training": {"epochs": 3},
        "index": {"k": 50},
        "gates": {"metrics": ["recall@100"]},
        "validation": {"min_rows_a_day": 10},
    }
)


@dataclass(frozen=True)
class Prepared:
    """A workspace that holds a small simulated log up to its dataset."""

    place: Workspace
    config: Config
    store: object


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    from watchrank.datasets.ranking import build_ranking_dataset
    from watchrank.feature_store import open_store
    from watchrank.features import build_features
    from watchrank.ingestion import ingest
    from watchrank.simulation import simulate

    place = Workspace(tmp_path_factory.mktemp("workspace"))
    simulate(place.log, place.truth, SMALL.simulation)
    ingest(place.log, "own", place.events, SMALL.ingestion, SMALL.engine)
    build_features(place.events, place.features, SMALL.features, SMALL.engine)
    store = open_store(REPOSITORY / "feature_repo", place.features, place.feature_store)
    build_ranking_dataset(place.events, store, place.dataset, SMALL.split)
    return Prepared(place, SMALL, store)


@pytest.fixture(scope="session")
def trained(prepared: Prepared) -> Prepared:
    """`prepared`, and a model trained on it."""
    from watchrank.training.ranking import train_ranking

    place, config = prepared.place, prepared.config
    train_ranking(place.dataset, place.model, config.ranking, config.training)
    return prepared


@pytest.fixture(scope="session")
def models(trained: Prepared) -> object:
    """The models of a release, trained on `prepared`, with their datasets."""
    from watchrank.datasets.candidates import build_candidate_dataset
    from watchrank.export.release import Trained
    from watchrank.training.candidate_generation import train_candidates

    place, config = trained.place, trained.config
    build_candidate_dataset(place.events, trained.store, place.candidate_dataset, config.examples)
    train_candidates(
        place.candidate_dataset, place.candidate_model, config.candidates, config.candidate_training
    )
    return Trained(
        ranking=place.model,
        dataset=place.dataset,
        candidates=place.candidate_model,
        candidate_dataset=place.candidate_dataset,
    )


@pytest.fixture(scope="session")
def released(trained: Prepared, models: object) -> Path:
    """A release of `models`."""
    from watchrank.export.release import export_release

    place, config = trained.place, trained.config
    return export_release(models, trained.store, {"models": {}}, place.releases, config.index, config.export)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED_DATA.is_dir():
        pytest.skip("the data folder shared/data is not beside the checkout")
    return SHARED_DATA


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


def needed(program: str, *places: Path) -> str:
    """Return where a program is, on the path or in `places`; without it CI fails, others skip the test."""
    found = shutil.which(program, path=os.pathsep.join([os.environ["PATH"], *map(str, places)]))
    if found is None:
        reason = f"there is no {program}; install it"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


@pytest.fixture(scope="session")
def program() -> Callable[[str], str]:
    """Return where a program is that a test cannot do without; see `needed`."""
    return needed


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(port: int) -> None:
    """Wait until a server listens."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)


@pytest.fixture(scope="session")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real Redis server with nothing in it."""
    program, port = needed("redis-server"), free_port()
    folder = tmp_path_factory.mktemp("redis")
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        wait_for(port)
        yield f"127.0.0.1:{port}"
        server.terminate()


@pytest.fixture(scope="session")
def postgres() -> Iterator[dict[str, str]]:
    """The variables that lead to a real Postgres server; the user may make databases."""
    program = Path(needed("initdb", *Path("/usr/lib/postgresql").glob("*/bin")))
    port, password = free_port(), "p@ss:/word"
    owner = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "password").write_text(password)
        if owner:
            shutil.chown(folder, "postgres")
        options = ["--username=watchrank", "--auth=scram-sha-256", f"--pwfile={folder}/password", "--no-sync"]
        made = [program, f"--pgdata={folder}/data", *options]
        subprocess.run(made, check=True, stdout=subprocess.DEVNULL, cwd=folder, **owner)
        settings = [
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "fsync=off",
            "logging_collector=on",
        ]
        started = [program.with_name("postgres"), "-D", f"{folder}/data", "-p", str(port)]
        started += [word for setting in settings for word in ("-c", setting)]
        with subprocess.Popen(started, stderr=subprocess.DEVNULL, cwd=folder, **owner) as server:
            wait_for(port)
            yield {
                "PGHOST": "127.0.0.1",
                "PGPORT": str(port),
                "PGUSER": "watchrank",
                "PGPASSWORD": password,
                "PGDATABASE": "postgres",
            }
            server.send_signal(signal.SIGINT)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of a real server of the S3 protocol."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A URL in a new bucket, which the AWS variables lead to."""
    from pyarrow.fs import FileSystem

    variables = {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    bucket = f"bucket-{uuid4().hex}"
    FileSystem.from_uri(f"s3://{bucket}?allow_bucket_creation=true")[0].create_dir(bucket)
    return f"s3://{bucket}/some/prefix"


@pytest.fixture(scope="session")
def triton_venv() -> Path:
    """The environment of the real server: there in CI, elsewhere the test is skipped without it."""
    folder = Path(os.environ.get("WATCHRANK_TRITON_VENV", REPOSITORY / ".venv-triton"))
    if not (folder / "bin" / "python").exists():
        reason = f"no Triton environment at {folder}: run `make env`"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return folder
