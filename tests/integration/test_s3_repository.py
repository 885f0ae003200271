"""A real Triton that serves from a model repository on a real server of the S3 protocol."""

import json
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import count

import numpy as np
import pytest
import tritonclient.grpc as grpc
from pyarrow.fs import FileSelector, FileSystem

from watchrank.deployment import deploy as module
from watchrank.deployment import model_repository
from watchrank.deployment.administration import admin_headers
from watchrank.deployment.deploy import deploy
from watchrank.deployment.local_server import LocalTriton
from watchrank.deployment.rollback import roll_back
from watchrank.errors import DeploymentError
from watchrank.object_storage import ObjectStore
from watchrank.serving.client import infer_inputs

from .localised import copy_before_loading
from .multiplying import make_release

ENDPOINT = "recommend"


def objects(repository):
    """The objects of a repository, by name, with their content."""
    files, root = FileSystem.from_uri(repository)
    found = files.get_file_info(FileSelector(root, allow_not_found=True, recursive=True))
    names = sorted(info.path for info in found if info.is_file)
    return {name.removeprefix(f"{root}/"): files.open_input_stream(name).read() for name in names}


@pytest.fixture(scope="module")
def server(triton_venv, tmp_path_factory):
    repository, state = tmp_path_factory.mktemp("repository"), tmp_path_factory.mktemp("state")
    with LocalTriton(venv=triton_venv, repository=repository, state=state) as running:
        running.folder = repository
        yield running


@pytest.fixture
def settings(server):
    """Where a server listens that has loaded nothing."""
    with grpc.InferenceServerClient(server.settings.grpc_url) as client:
        for model in client.get_model_repository_index(headers=admin_headers(server.settings)).models:
            if model.state == "READY":
                client.unload_model(model.name, headers=admin_headers(server.settings))
    return server.settings


@pytest.fixture
def repository(s3, settings, server, monkeypatch):
    """A model repository on S3 that the server serves from."""
    copy_before_loading(monkeypatch, s3, server.folder)
    return s3


@pytest.fixture
def releases(tmp_path):
    """A folder of the releases 1, 2 and 3."""
    for number in (1, 2, 3):
        make_release(tmp_path / "releases" / f"{number:06d}", number, endpoint=ENDPOINT)
    return tmp_path / "releases"


def answer(settings):
    """The number of the release that answers."""
    with grpc.InferenceServerClient(settings.grpc_url) as client:
        inputs = infer_inputs(grpc.InferInput, {"number": np.ones((1, 1), np.float32)})
        return client.infer(ENDPOINT, inputs).as_numpy("answer").item()


# -- Releases come and go --------------------------------------------------------------------------


def test_releases_are_deployed_to_s3_and_rolled_back(repository, settings, releases):
    for number in (1, 2, 3):
        done = deploy(releases / f"{number:06d}", repository, settings)
        assert (done.release, done.removed) == (number, [1] if number == 3 else [])
        assert answer(settings) == number
        assert model_repository.serving(repository, ENDPOINT) == number
    assert roll_back(releases, repository, None, None, settings) == (3, 2)
    assert answer(settings) == 2
    assert {*objects(repository)} == {
        "recommend/config.pbtxt",
        *(f"recommend_00000{n}/{name}" for n in (2, 3) for name in ("config.pbtxt", "1/model.onnx")),
    }
    for number in (2, 3):
        graph = (releases / f"00000{number}" / ENDPOINT / "model.onnx").read_bytes()
        assert objects(repository)[f"recommend_00000{number}/1/model.onnx"] == graph


def test_a_release_is_loaded_beside_the_one_that_serves(repository, settings, releases):
    deploy(releases / "000001", repository, settings)
    assert not deploy(releases / "000002", repository, settings, switch=False).serves
    assert answer(settings) == model_repository.serving(repository, ENDPOINT) == 1
    assert model_repository.releases(repository) == [1, 2]


def test_a_switch_within_one_second_of_s3_is_taken_up(s3, settings, server, releases, monkeypatch):
    copy_before_loading(monkeypatch, s3, server.folder, lambda modified: 1_000)
    for number in (1, 2, 1):
        deploy(releases / f"{number:06d}", s3, settings)
        assert answer(settings) == number


def test_a_release_that_answers_wrongly_after_the_switch_is_taken_back(
    repository, settings, releases, monkeypatch
):
    deploy(releases / "000001", repository, settings)
    before, ask = objects(repository), module._ask

    def ask_wrongly(server, golden, names):
        ask(server, golden, names)
        if ENDPOINT in names.values():
            raise DeploymentError("recommend is wrong")

    with monkeypatch.context() as patch:
        patch.setattr(module, "_ask", ask_wrongly)
        with pytest.raises(DeploymentError, match=r"^Release 2 was taken back: .*; release 1 serves on\.$"):
            deploy(releases / "000002", repository, settings)
    assert answer(settings) == 1
    assert objects(repository) == before
    deploy(releases / "000002", repository, settings)
    assert answer(settings) == 2


# -- What goes wrong on the way --------------------------------------------------------------------


class Killed(BaseException):
    """In the place of SIGKILL."""


class Steps:
    """Lets so many changes to S3 and calls of the server be done; the next and all after it fail."""

    def __init__(self, monkeypatch, left, error):
        self.left, self.error = left, error
        for name in ("write", "replace", "make_folder", "remove", "remove_folder"):
            monkeypatch.setattr(ObjectStore, name, self._counted(getattr(ObjectStore, name)))

    def _counted(self, function):
        def call(*arguments):
            if self.left == 0:
                raise self.error
            self.left -= 1
            return function(*arguments)

        return call


@pytest.mark.slow
def test_a_deployment_killed_at_any_write_leaves_one_whole_release_and_can_be_repeated(
    repository, settings, releases, monkeypatch
):
    settings = settings.model_copy(update={"keep_releases": 1})
    whole, ended = {}, False
    for number in (2, 1):
        deploy(releases / f"{number:06d}", repository, settings)
        whole[number] = objects(repository)
    for writes in count():
        before, number = number, 3 - number
        with monkeypatch.context() as patch:
            Steps(patch, writes, Killed())
            patch.setattr(module, "_return", lambda *_: "")  # who is killed takes nothing back
            with suppress(Killed):
                deploy(releases / f"{number:06d}", repository, settings)
                ended = True
        now, pointed = int(answer(settings)), model_repository.serving(repository, ENDPOINT)
        assert {now, pointed} <= {before, number}
        for release in (now, pointed):
            models = {name for name in whole[release] if name.startswith(f"recommend_{release:06d}/")}
            assert models <= objects(repository).keys()
        deploy(releases / f"{number:06d}", repository, settings)
        assert answer(settings) == number
        assert objects(repository) == whole[number]
        if ended:
            break
    assert writes >= 8  # the root; folder, graph, configuration; both of the endpoint; two removals


@pytest.mark.parametrize("writes", range(1, 6))
def test_when_a_write_fails_what_serves_serves_on(repository, settings, releases, monkeypatch, writes):
    deploy(releases / "000001", repository, settings)
    before = objects(repository)
    with monkeypatch.context() as patch:
        Steps(patch, writes, DeploymentError("The model repository cannot be used (no answer); wait."))
        with pytest.raises(DeploymentError, match=r"^Release 2 was taken back: .*no answer.*wait; .*\.$"):
            deploy(releases / "000002", repository, settings)
    assert answer(settings) == 1
    assert model_repository.serving(repository, ENDPOINT) == 1
    assert before.items() <= objects(repository).items()
    assert deploy(releases / "000002", repository, settings).release == 2
    assert answer(settings) == 2


def test_another_release_of_the_same_number_is_refused(repository, settings, releases, tmp_path):
    deploy(releases / "000001", repository, settings)
    before = objects(repository)
    other = make_release(tmp_path / "other" / "000003", 3, endpoint=ENDPOINT)
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest | {"release": 1}))
    with pytest.raises(DeploymentError, match=r"s3://.*/recommend_000001 holds another release of the same"):
        deploy(other, repository, settings)
    assert objects(repository) == before
    assert answer(settings) == 1


# -- Repositories that are not there ---------------------------------------------------------------


def test_a_bucket_that_is_not_there_is_named(repository, settings, releases):
    with pytest.raises(
        DeploymentError,
        match=r"^The model repository s3://nowhere/models cannot be used \(Bucket 'nowhere' not found\); ",
    ) as seen:
        deploy(releases / "000001", "s3://nowhere/models", settings)
    assert "\n" not in str(seen.value)


@pytest.fixture
def locked_out(monkeypatch):
    """The AWS variables lead to a server of the S3 protocol that lets nobody in; there are no credentials."""

    class Refuses(BaseHTTPRequestHandler):
        def refuse(self):
            self.send_response(403)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>")

        def __getattr__(self, name):
            return self.refuse if name.startswith("do_") else super().__getattribute__(name)

        def log_message(self, *_):
            pass

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    with HTTPServer(("127.0.0.1", 0), Refuses) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{web.server_port}")
        yield
        web.shutdown()


def test_without_credentials_the_repository_is_named(locked_out, settings, releases):
    with pytest.raises(
        DeploymentError, match=r"^The model repository s3://bucket/models cannot be used .*ACCESS_DENIED.*AWS"
    ) as seen:
        deploy(releases / "000001", "s3://bucket/models", settings)
    assert "\n" not in str(seen.value)
