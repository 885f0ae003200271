"""Deploying a release: verify, publish, load, smoke-test; take back when anything fails.

What served before answers until the new version is ready, and again once that is taken back.
"""

import json
import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as grpc
import tritonclient.http as http
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from watchrank.config import DeploymentSettings
from watchrank.deployment import model_repository
from watchrank.errors import DeploymentError, InputError
from watchrank.releases import MANIFEST, checksum
from watchrank.serving.client import infer_inputs

MODEL = "ranking"
_FILES = tuple(f"{MODEL}/{name}" for name in ("model.onnx", "config.pbtxt", "golden.json"))
_SMALLEST = 1e-3
"""Below this many seconds differences count as absolute."""


@dataclass(frozen=True, kw_only=True)
class Deployed:
    """A version that serves: `requests` golden ones were answered rightly, `removed` versions are gone."""

    model: str
    version: int
    requests: int
    removed: list[int]


def deploy(release: Path, repository: Path, settings: DeploymentSettings) -> Deployed:
    """Make the release's ranking model the one that Triton serves.

    A version takes requests from the moment it is loaded: while its golden requests run it answers
    everyone, and one that fails them has answered for so long.

    Args:
        release: folder with manifest.json ({"files": {path: sha256}}) and, under ranking/, model.onnx,
            config.pbtxt and golden.json ({"tolerance", "requests": [{"inputs", "outputs"}]}, nested lists).
        repository: the model repository that the server reads.
        settings: where the server listens, and how many versions to keep.

    Raises:
        InputError: `release` is no release.
        DeploymentError: the release is damaged, the server cannot be reached, or it does not load the
            version or answers wrongly; the version is taken back and the one of before serves on.
    """
    _verify(release)
    golden = _read_golden(release / _FILES[2])
    with grpc.InferenceServerClient(settings.grpc_url) as client:
        server = _Server(client=client, settings=settings)
        server.check_reachable()
        with _published(release, repository, server) as version:
            server.load(version)
            requests = _smoke_test(server, version, golden)
    removed = model_repository.prune(repository, MODEL, settings.keep_versions)
    return Deployed(model=MODEL, version=version, requests=requests, removed=removed)


@contextmanager
def _published(release: Path, repository: Path, server: "_Server") -> Iterator[int]:
    """Publish the release's model; take it back when the block fails."""
    before = model_repository.read_config(repository, MODEL)
    config = (release / _FILES[1]).read_text(encoding="utf-8")
    version = model_repository.publish(release / _FILES[0], config, repository, MODEL)
    try:
        yield version
    except BaseException as error:
        model_repository.withdraw(repository, MODEL, version, before)
        outcome = server.return_to(model_repository.versions(repository, MODEL))
        if isinstance(error, DeploymentError | InferenceServerException | OSError):
            reason = str(error).splitlines()[0].rstrip(".")
            raise DeploymentError(
                f"{MODEL} version {version} was taken back: {reason}; {outcome}."
            ) from error
        raise


def _verify(release: Path) -> None:
    """Compare every file with its checksum in the manifest."""
    try:
        files = json.loads((release / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{release} is no release, its {MANIFEST} cannot be read ({error}); run `watchrank export`."
        ) from None
    for relative in (*_FILES, *files):
        path = release / relative
        if relative not in files or not path.is_file() or checksum(path) != files[relative]:
            raise DeploymentError(
                f"The release {release} is damaged: {relative} is missing or not the file of its manifest; "
                "export it again."
            )


def _read_golden(path: Path) -> dict[str, Any]:
    golden: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if not golden["requests"]:
        raise DeploymentError(f"{path} holds no golden request to test the server with; export it again.")
    return golden


@dataclass(frozen=True, kw_only=True)
class _Server:
    """The calls that deploying makes, each with the settings' timeout."""

    client: grpc.InferenceServerClient
    settings: DeploymentSettings

    def check_reachable(self) -> None:
        try:
            self.client.is_server_live(client_timeout=self.settings.timeout_seconds)
        except InferenceServerException:
            raise DeploymentError(
                f"No Triton can be reached at {self.settings.grpc_url}; start it with `make serve`."
            ) from None

    def load(self, version: int) -> None:
        """Load the model and wait for this very version: the server's own readiness says nothing about it."""
        self.client.load_model(MODEL, client_timeout=self.settings.timeout_seconds)
        self._wait_for(lambda: self._is_ready(version), "it is not ready")

    def return_to(self, versions: list[int]) -> str:
        """Make the server serve the newest of `versions`, or nothing; return in words what serves now."""
        try:
            if not versions:
                self.client.unload_model(MODEL, client_timeout=self.settings.timeout_seconds)
                return "nothing served before"
            self.load(versions[-1])
            return f"version {versions[-1]} serves on"
        except (DeploymentError, InferenceServerException) as error:
            return f"and the server did not return to what served before ({error})"

    def wait_for_count(self, version: int, count: float) -> None:
        """Wait until the metrics endpoint counts that many successful requests to the version."""
        self._wait_for(
            lambda: self.count(version) >= count, f"the metrics do not count its {count:g} golden requests"
        )

    def count(self, version: int) -> float:
        """Return how many requests to the version have succeeded, as the metrics endpoint says."""
        url = f"http://{self.settings.metrics_url}/metrics"
        with urllib.request.urlopen(url, timeout=self.settings.timeout_seconds) as answer:
            text = answer.read().decode()
        line = rf'^nv_inference_request_success{{model="{MODEL}",version="{version}"}} (\S+)$'
        found = re.search(line, text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def _is_ready(self, version: int) -> bool:
        return bool(
            self.client.is_model_ready(MODEL, str(version), client_timeout=self.settings.timeout_seconds)
        )

    def _wait_for(self, condition: Callable[[], bool], fault: str) -> None:
        deadline = time.monotonic() + self.settings.timeout_seconds
        while not condition():
            if time.monotonic() > deadline:
                raise DeploymentError(f"{fault} after {self.settings.timeout_seconds:g} s")
            time.sleep(0.02)


def _smoke_test(server: _Server, version: int, golden: dict[str, Any]) -> int:
    """Send the golden requests over gRPC and HTTP, see that the metrics count them; return their number."""
    seconds = server.settings.timeout_seconds
    counted = server.count(version)
    metadata = server.client.get_model_metadata(MODEL, str(version), client_timeout=seconds)
    dtypes = {tensor.name: triton_to_np_dtype(tensor.datatype) for tensor in metadata.inputs}
    with http.InferenceServerClient(
        server.settings.http_url, connection_timeout=seconds, network_timeout=seconds
    ) as web:
        for request in golden["requests"]:
            arrays = {name: np.array(values, dtypes[name]) for name, values in request["inputs"].items()}
            over_grpc = server.client.infer(
                MODEL, infer_inputs(grpc.InferInput, arrays), str(version), client_timeout=seconds
            )
            over_http = web.infer(MODEL, infer_inputs(http.InferInput, arrays), str(version))
            for name, expected in request["outputs"].items():
                _compare(f"{name} over gRPC", over_grpc.as_numpy(name), expected, golden["tolerance"])
                _compare(f"{name} over HTTP", over_http.as_numpy(name), expected, golden["tolerance"])
    server.wait_for_count(version, counted + 2 * len(golden["requests"]))
    return len(golden["requests"])


def _compare(what: str, answer: np.ndarray | None, expected: list[Any], tolerance: float) -> None:
    """Raise DeploymentError unless `answer` is `expected` within the relative tolerance."""
    want = np.array(expected)
    if answer is None or answer.shape != want.shape:
        raise DeploymentError(f"{what} has shape {getattr(answer, 'shape', None)} instead of {want.shape}")
    difference = np.abs(answer - want) / np.maximum(np.abs(want), _SMALLEST)
    if not (difference <= tolerance).all():
        worst = np.unravel_index(np.argmax(np.nan_to_num(difference, nan=np.inf)), want.shape)
        raise DeploymentError(f"{what} is {answer[worst]:g} where the golden answer is {want[worst]:g}")
