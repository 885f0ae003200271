"""Deploying a release: verify, load beside what serves, smoke-test, switch; rolling back is the same.

Until the switch callers see nothing of it. Whenever it stops, killed or not, every endpoint points to one
whole release that was tested.
"""

import json
import re
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as grpc
import tritonclient.http as http
from pydantic import BaseModel
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from watchrank.config import DeploymentSettings
from watchrank.deployment import model_repository as store
from watchrank.deployment.administration import admin_headers
from watchrank.errors import DeploymentError, InputError
from watchrank.graphs import checked
from watchrank.serving.client import infer_inputs

_SMALLEST = 1e-3
"""Below this many seconds differences count as absolute."""


class GoldenRequest(BaseModel):
    """What a model is asked, and what it must answer: nested lists by the names of the tensors."""

    model: str
    inputs: dict[str, list[Any]]
    outputs: dict[str, list[Any]]


class Golden(BaseModel):
    """A release's golden.json: answers may differ by the relative `tolerance`."""

    tolerance: float
    requests: list[GoldenRequest]


@dataclass(frozen=True, kw_only=True)
class Deployed:
    """A release that is loaded: `requests` golden ones were answered rightly, `removed` releases are gone."""

    release: int
    serves: bool
    requests: int
    removed: list[int] = field(default_factory=list)


def deploy(
    release: Path, repository: store.Location, settings: DeploymentSettings, *, switch: bool = True
) -> Deployed:
    """Make a release the one that Triton's endpoints answer with; an earlier one, too: that is a rollback.

    A second deployment that starts meanwhile waits for this one, unless the repository is on S3.

    Args:
        release: folder with manifest.json ({"release", "endpoints", "files": {path: sha256}}), golden.json
            (`Golden`), one folder a model.
        repository: the model repository that the server reads, a folder or s3://bucket/prefix.
        settings: where the server listens, and how many releases to keep.
        switch: False only loads and tests the release; callers reach it under its numbered names.

    Raises:
        InputError: `release` is no release, or the repository is at an address of another kind.
        DeploymentError: the release is damaged or must not be loaded, or the server or the repository is not
            there, does not load it or answers wrongly; it is taken back and the one of before serves on.
    """
    manifest = checked(release, settings.max_graph_bytes)
    golden = _read_golden(release / "golden.json")
    number, endpoints = manifest["release"], manifest["endpoints"]
    with store.held(repository), _connected(settings) as server:
        before = {endpoint: store.serving(repository, endpoint) for endpoint in endpoints}
        with _taken_back(server, repository, number, before):
            store.publish(release, number, repository)
            for endpoint in endpoints:
                server.load(store.name_of(endpoint, number))
            _smoke_test(server, number, golden)
            if switch:
                for endpoint in endpoints:
                    store.point(endpoint, number, repository)
                    server.load(endpoint)
                _ask(server, golden, {endpoint: endpoint for endpoint in endpoints})
                _close(server, repository, set(store.endpoints(repository)) - set(endpoints))
        removed = _retire(server, repository, endpoints, settings.keep_releases)
    return Deployed(release=number, serves=switch, requests=len(golden.requests), removed=removed)


def serving(endpoints: Iterable[str], settings: DeploymentSettings) -> int | None:
    """Return the release that the server answers from at all these endpoints, as the server itself says.

    None when not all of them are loaded and point to the same: nothing is deployed yet, the server was
    started anew, or a deployment was killed.

    Raises:
        DeploymentError: the server cannot be reached.
    """
    with _connected(settings) as server:
        answering = {server.release_of(endpoint) for endpoint in endpoints}
    return answering.pop() if len(answering) == 1 else None


def release_before(repository: store.Location, endpoint: str) -> int:
    """Return the number of the release before the one that serves, to roll back to.

    Raises:
        InputError: nothing serves, or nothing older is in the repository.
    """
    current = store.serving(repository, endpoint)
    older = [number for number in store.releases(repository) if current and number < current]
    if not older:
        raise InputError(
            f"{repository} holds no release before {current or 'the first'}; give the number of a release."
        )
    return older[-1]


@contextmanager
def _connected(settings: DeploymentSettings) -> "Iterator[_Server]":
    with grpc.InferenceServerClient(settings.grpc_url) as client:
        server = _Server(client=client, settings=settings)
        server.check_reachable()
        yield server


@contextmanager
def _taken_back(
    server: "_Server", repository: store.Location, number: int, before: Mapping[str, int | None]
) -> Iterator[None]:
    """When the block fails, let the endpoints answer as before and remove what was loaded for the release."""
    configs = {endpoint: store.read_endpoint(repository, endpoint) for endpoint in before}
    try:
        yield
    except (DeploymentError, InferenceServerException, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        outcome = _return(server, repository, number, configs, before)
        raise DeploymentError(f"Release {number} was taken back: {reason}; {outcome}.") from error
    except BaseException:
        _return(server, repository, number, configs, before)
        raise


def _return(
    server: "_Server",
    repository: store.Location,
    number: int,
    configs: Mapping[str, str | None],
    before: Mapping[str, int | None],
) -> str:
    """Put the endpoints back; return in words what serves now."""
    try:
        for endpoint, config in configs.items():
            if store.read_endpoint(repository, endpoint) != config:
                store.write_endpoint(repository, endpoint, config)
                server.unload(endpoint) if config is None else server.load(endpoint)
        if number not in before.values():
            _drop(server, repository, number)
    except (DeploymentError, InferenceServerException) as error:
        return f"what serves is uncertain, as the server did not follow ({error})"
    served = sorted({release for release in before.values() if release is not None})
    return f"release {served[-1]} serves on" if served else "nothing served before"


def _close(server: "_Server", repository: store.Location, endpoints: set[str]) -> None:
    """Take away endpoints that the release which serves now does not have."""
    for endpoint in sorted(endpoints):
        server.unload(endpoint)
        store.write_endpoint(repository, endpoint, None)


def _retire(server: "_Server", repository: store.Location, endpoints: list[str], keep: int) -> list[int]:
    """Unload and remove all but those that serve and the newest others, `keep` in all; return the removed."""
    serving = {store.serving(repository, endpoint) for endpoint in endpoints}
    others = [number for number in store.releases(repository) if number not in serving]
    removed = others[: max(len(others) - (keep - len(serving - {None})), 0)]
    for number in removed:
        _drop(server, repository, number)
    return removed


def _drop(server: "_Server", repository: store.Location, number: int) -> None:
    for name in reversed(store.models_of(repository, number)):
        server.unload(name)
    store.remove(repository, number)


def _read_golden(path: Path) -> Golden:
    try:
        golden = Golden.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DeploymentError(f"{path} cannot be read ({reason}); export the release again.") from None
    if not golden.requests:
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

    def load(self, model: str) -> None:
        """Load a model, with those it is made of, and wait for it."""
        seconds = self.settings.timeout_seconds
        self.client.load_model(model, headers=admin_headers(self.settings), client_timeout=seconds)
        self._wait_for(lambda: self._is_ready(model), f"{model} is not ready")

    def unload(self, model: str) -> None:
        """Unload a model; one that is not loaded stays so."""
        seconds = self.settings.timeout_seconds
        self.client.unload_model(model, headers=admin_headers(self.settings), client_timeout=seconds)

    def release_of(self, endpoint: str) -> int | None:
        """Return the release that an endpoint points to, or None when it is not loaded."""
        try:
            answer = self.client.get_model_config(endpoint, client_timeout=self.settings.timeout_seconds)
        except InferenceServerException:
            return None
        return store.release_of(answer.config)

    def wait_for_count(self, model: str, count: float) -> None:
        """Wait until the metrics endpoint counts that many successful requests to the model."""
        self._wait_for(
            lambda: self.count(model) >= count,
            f"the metrics do not count the {count:g} golden requests of {model}",
        )

    def count(self, model: str) -> float:
        """Return how many requests to the model have succeeded, as the metrics endpoint says."""
        url = f"http://{self.settings.metrics_url}/metrics"
        with urllib.request.urlopen(url, timeout=self.settings.timeout_seconds) as answer:
            text = answer.read().decode()
        line = rf'^nv_inference_request_success{{model="{model}",version="{store.VERSION}"}} (\S+)$'
        found = re.search(line, text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def _is_ready(self, model: str) -> bool:
        return bool(self.client.is_model_ready(model, client_timeout=self.settings.timeout_seconds))

    def _wait_for(self, condition: Callable[[], bool], fault: str) -> None:
        deadline = time.monotonic() + self.settings.timeout_seconds
        while not condition():
            if time.monotonic() > deadline:
                raise DeploymentError(f"{fault} after {self.settings.timeout_seconds:g} s")
            time.sleep(0.02)


def _smoke_test(server: _Server, number: int, golden: Golden) -> None:
    """Send a release by its number the golden requests; see that the metrics count them."""
    names = {request.model: store.name_of(request.model, number) for request in golden.requests}
    counted = {model: server.count(name) for model, name in names.items()}
    _ask(server, golden, names)
    for model, name in names.items():
        requests = sum(request.model == model for request in golden.requests)
        server.wait_for_count(name, counted[model] + 2 * requests)


def _ask(server: _Server, golden: Golden, names: Mapping[str, str]) -> None:
    """Send the golden requests to the models of these names, over gRPC and HTTP, and compare the answers."""
    seconds = server.settings.timeout_seconds
    with http.InferenceServerClient(
        server.settings.http_url, connection_timeout=seconds, network_timeout=seconds
    ) as web:
        for request in golden.requests:
            name = names[request.model]
            metadata = server.client.get_model_metadata(name, client_timeout=seconds)
            dtypes = {tensor.name: triton_to_np_dtype(tensor.datatype) for tensor in metadata.inputs}
            try:
                arrays = {key: np.array(values, dtypes[key]) for key, values in request.inputs.items()}
            except (KeyError, ValueError, TypeError) as error:
                raise DeploymentError(
                    f"a golden request does not fit the inputs of {name} ({error})"
                ) from None
            over_grpc = server.client.infer(
                name, infer_inputs(grpc.InferInput, arrays), client_timeout=seconds
            )
            over_http = web.infer(name, infer_inputs(http.InferInput, arrays))
            for output, expected in request.outputs.items():
                for way, answer in (("gRPC", over_grpc), ("HTTP", over_http)):
                    what = f"{name}'s {output} over {way}"
                    _compare(what, answer.as_numpy(output), expected, golden.tolerance)


def _compare(what: str, answer: np.ndarray | None, expected: list[Any], tolerance: float) -> None:
    """Raise DeploymentError unless `answer` is `expected` within the relative tolerance."""
    want = np.array(expected)
    if answer is None or answer.shape != want.shape:
        raise DeploymentError(f"{what} has shape {getattr(answer, 'shape', None)} instead of {want.shape}")
    with np.errstate(invalid="ignore"):
        difference = np.abs(answer - want) / np.maximum(np.abs(want), _SMALLEST)
        right = (difference <= tolerance) | (answer == want)
    if not right.all():
        worst = np.unravel_index(np.argmax(np.nan_to_num(difference, nan=np.inf) * ~right), want.shape)
        raise DeploymentError(f"{what} is {answer[worst]:g} where the golden answer is {want[worst]:g}")
