"""A workspace of two releases that a real Triton serves, and who asks it."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import tritonclient.grpc as grpc

from watchrank.config import DeploymentSettings
from watchrank.deployment.deploy import serving
from watchrank.deployment.local_server import LocalTriton
from watchrank.schema import EXPECTED_WATCH_TIME
from watchrank.serving.client import infer_inputs
from watchrank.workspace import Workspace


class Served:
    """A workspace of two releases with a real Triton, and who asks it all the time."""

    def __init__(self, place: Workspace, server: LocalTriton, watchrank: Callable[..., str]) -> None:
        self.place, self.server, self.watchrank = place, server, watchrank
        self.golden = {number: _golden(place.release(number)) for number in (1, 2)}

    def program(self, command: str, *arguments: object, keep: int = 2) -> str:
        """Return the program of a command that talks to the server."""
        reached = self.server.settings.model_dump()
        options = [f"--set=deployment.{name}={reached[name]}" for name in reached if name.endswith("_url")]
        options += [f"--set=deployment.keep_releases={keep}", "--set=deployment.timeout_seconds=60"]
        return self.watchrank(command, self.place.root, *options, *arguments)

    def serves(self) -> int | None:
        """Return the release that the server says it answers from."""
        return serving(["candidate_generation", "ranking", "recommend"], self.settings)

    @property
    def settings(self) -> DeploymentSettings:
        """Where the server is."""
        return self.server.settings.model_copy(update={"timeout_seconds": 60})

    @contextmanager
    def asking(self) -> Iterator[list[int]]:
        """Let a thread ask all the time; yield the releases that answered. All answers must be right."""
        releases: list[int] = []
        faults: list[BaseException] = []
        stop = Event()

        def ask() -> None:
            with grpc.InferenceServerClient(self.settings.grpc_url) as client:
                while not stop.wait(0.01):
                    try:
                        releases.append(self._ask(client))
                    except BaseException as fault:  # noqa: BLE001
                        faults.append(fault)

        thread = Thread(target=ask)
        thread.start()
        try:
            yield releases
        finally:
            stop.set()
            thread.join()
        assert faults == []
        assert releases

    def _ask(self, client: grpc.InferenceServerClient) -> int:
        request = self.golden[1]
        names = {tensor.name: tensor.datatype for tensor in client.get_model_metadata("recommend").inputs}
        dtypes = {"INT64": np.int64, "FP32": np.float32}
        arrays = {name: np.array(values, dtypes[names[name]]) for name, values in request["inputs"].items()}
        answer = client.infer("recommend", infer_inputs(grpc.InferInput, arrays), client_timeout=60)
        number = int(answer.as_numpy("release").flat[0])
        expected = self.golden[number]["outputs"]
        np.testing.assert_allclose(
            answer.as_numpy(EXPECTED_WATCH_TIME), expected[EXPECTED_WATCH_TIME], rtol=1e-3
        )
        return number


def _golden(release: Path | None) -> dict[str, Any]:
    assert release
    requests = json.loads((release / "golden.json").read_text())["requests"]
    found: dict[str, Any] = next(request for request in requests if request["model"] == "recommend")
    return found
