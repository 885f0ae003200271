import socket
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest
import uvicorn

from watchrank.config import ServingSettings
from watchrank.deployment.deploy import deploy
from watchrank.deployment.local_server import LocalTriton
from watchrank.feature_store import materialise
from watchrank.serving.http import create_app
from watchrank.serving.popular import PopularVideos


@pytest.fixture(scope="session")
def serving():
    """A context manager that runs the HTTP service in a thread and yields its address."""

    @contextmanager
    def running(store, deployment, log, releases=(), **settings):
        """Run the service in a thread, with the popular videos of folders of releases; yield its address."""
        settings = ServingSettings(**{"timeout_seconds": 30} | settings)  # the machine may be busy
        app = create_app(store, deployment, settings, log, PopularVideos(releases))
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
            thread.start()
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            try:
                yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            finally:
                server.should_exit = True
                thread.join()

    return running


@pytest.fixture(scope="module")
def store(prepared):
    materialise(prepared.store, datetime.now(UTC))
    return prepared.store


@pytest.fixture(scope="module")
def triton(triton_venv, released, tmp_path_factory):
    repository, state = tmp_path_factory.mktemp("repository"), tmp_path_factory.mktemp("state")
    with LocalTriton(venv=triton_venv, repository=repository, state=state) as running:
        deploy(released, repository, running.settings)
        yield running


@pytest.fixture(scope="module")
def url(serving, triton, store, tmp_path_factory):
    with serving(store, triton.settings, tmp_path_factory.mktemp("log")) as url:
        yield url
