import socket
import threading
import time
from contextlib import contextmanager

import pytest
import uvicorn

from watchrank.config import ServingSettings
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
