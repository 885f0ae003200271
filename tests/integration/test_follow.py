"""Real Tritons that follow a release store on a real server of the S3 protocol."""

import json
import logging
import re
import signal
import socket
import subprocess
import sys
import time
from threading import Event, Thread
from types import SimpleNamespace

import numpy as np
import pytest
import tritonclient.grpc as grpc
from moto.server import ThreadedMotoServer
from pyarrow.fs import FileSystem

from watchrank.deployment import follow as module
from watchrank.deployment import model_repository
from watchrank.deployment.administration import admin_headers
from watchrank.deployment.follow import follow, follow_once
from watchrank.deployment.local_server import LocalTriton
from watchrank.deployment.release_store import ReleaseStore
from watchrank.deployment.rollout import champion, roll_out, switch
from watchrank.errors import DeploymentError, InputError
from watchrank.releases import checksums
from watchrank.serving.client import infer_inputs

from .multiplying import make_release

pytestmark = pytest.mark.slow  # a minute and more


class Follower:
    """One Triton with its model repository, its settings and its folder of pulled releases."""

    def __init__(self, server, folder):
        self.server = server
        self.repository = folder / "model_repository"
        self.pulled = folder / "pulled"
        self.settings = server.settings

    def follow_once(self, store):
        return follow_once(store, self.pulled, self.repository, self.settings)

    def follow(self, store, stop):
        follow(store, self.pulled, self.repository, self.settings, stop.interval, stop)

    def answer(self):
        """The number of the release that answers."""
        with grpc.InferenceServerClient(self.settings.grpc_url) as client:
            inputs = infer_inputs(grpc.InferInput, {"number": np.ones((1, 1), np.float32)})
            return client.infer("multiply", inputs).as_numpy("answer").item()

    def pulled_releases(self):
        return {path.name for path in self.pulled.iterdir()} - {".lock"}

    def clear(self):
        with grpc.InferenceServerClient(self.settings.grpc_url) as client:
            for number in model_repository.releases(self.repository):
                for name in ("multiply", *model_repository.models_of(self.repository, number)):
                    client.unload_model(name, headers=admin_headers(self.settings))
                model_repository.remove(self.repository, number)
        model_repository.write_endpoint(self.repository, "multiply", None)


@pytest.fixture(scope="module")
def running(triton_venv, tmp_path_factory):
    folder = tmp_path_factory.mktemp("workspace")
    with LocalTriton(
        venv=triton_venv, repository=folder / "model_repository", state=folder / "triton"
    ) as server:
        yield Follower(server, folder)


@pytest.fixture
def follower(running, tmp_path):
    """A Triton that serves nothing and has pulled nothing."""
    running.clear()
    running.pulled = tmp_path / "pulled"
    return running


@pytest.fixture
def store(s3, tmp_path):
    """A store that holds releases 1 and 2, and names 1 to serve."""
    store = ReleaseStore(s3)
    for number in (1, 2):
        store.push(make_release(tmp_path / str(number), number))
    store.serve(1)
    return store


def damage(store, number):
    """Change one byte of the model of a release in the store."""
    files, root = FileSystem.from_uri(f"{store.url}?allow_delayed_open=true")
    path = f"{root}/releases/{number:06d}/multiply/model.onnx"
    with files.open_input_stream(path) as source:
        content = bytearray(source.read())
    content[len(content) // 2] ^= 1
    with files.open_output_stream(path) as target:
        target.write(bytes(content))


def remove(store, name):
    """Remove an object of the store."""
    files, root = FileSystem.from_uri(store.url)
    files.delete_file(f"{root}/{name}")


class Looks:
    """In the place of the event that stops following: a clock that ends after some looks, and acts before."""

    interval = 10

    def __init__(self, monkeypatch, number, **actions):
        self.now, self.left = 0.0, number
        self.actions = {int(look.removeprefix("after_")): action for look, action in actions.items()}
        self.done = 0
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))

    def wait(self, seconds):
        assert seconds == self.interval
        self.now += seconds
        self.done += 1
        self.actions.get(self.done, lambda: None)()
        return self.done == self.left


# -- One look --------------------------------------------------------------------------------------


def test_a_triton_takes_up_the_release_that_the_store_names(follower, store):
    assert follower.follow_once(store).release == 1
    assert follower.answer() == 1
    assert follower.follow_once(store) is None
    store.serve(2)
    assert follower.follow_once(store).release == 2
    assert follower.answer() == 2
    store.serve(store.release_before())
    assert follower.follow_once(store).release == 1
    assert follower.answer() == 1


def test_two_tritons_serve_the_same_release(follower, store, triton_venv, tmp_path):
    with LocalTriton(
        venv=triton_venv, repository=tmp_path / "model_repository", state=tmp_path / "triton"
    ) as server:
        second = Follower(server, tmp_path)
        second.pulled = tmp_path / "second"
        for number in (1, 2):
            store.serve(number)
            for each in (follower, second):
                assert each.follow_once(store).release == number
                assert each.answer() == number


def test_a_triton_that_was_started_anew_gets_its_release_again(
    store, triton_venv, tmp_path, monkeypatch, caplog
):
    server = LocalTriton(
        venv=triton_venv, repository=tmp_path / "model_repository", state=tmp_path / "triton"
    )
    follower = Follower(server, tmp_path)
    with server:
        follower.follow_once(store)
    try:
        looks = Looks(monkeypatch, 2, after_1=server.start)
        with caplog.at_level(logging.INFO, logger="watchrank"):
            follower.follow(store, looks)
        messages = [record.getMessage() for record in caplog.records]
        assert re.search("No Triton can be reached at", messages[0])
        assert messages[1:] == ["Release 1 serves."]
        assert follower.answer() == 1
    finally:
        server.stop()


def test_a_damaged_release_is_refused(follower, store):
    follower.follow_once(store)
    damage(store, 2)
    store.serve(2)
    with pytest.raises(DeploymentError, match=r"Release 2 in s3://.* is damaged: multiply/model.onnx"):
        follower.follow_once(store)
    assert follower.answer() == 1
    assert follower.pulled_releases() == {"000001"}


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        '{"tolerance": 1, "requests": [{}]}',
        '{"tolerance": 1, "requests": [{"model": "multiply", "inputs": {"other": [[1]]}, "outputs": {}}]}',
        '{"tolerance": 1, "requests": [{"model": "multiply", "inputs": {"number": [["a"]]}, "outputs": {}}]}',
        '{"tolerance": 1, "requests": [{"model": "other", "inputs": {}, "outputs": {}}]}',
    ],
)
def test_a_release_with_broken_golden_requests_is_refused(follower, store, tmp_path, content):
    follower.follow_once(store)
    folder = make_release(tmp_path / "broken", 3)
    (folder / "golden.json").write_text(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["golden.json"] = checksums(folder)["golden.json"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    store.push(folder)
    store.serve(3)
    with pytest.raises(DeploymentError, match=r"golden.json cannot be read|Release 3 was taken back"):
        follower.follow_once(store)
    assert follower.answer() == 1


def test_a_release_that_answers_wrongly_is_refused(follower, store, tmp_path):
    follower.follow_once(store)
    store.push(make_release(tmp_path / "wrong", 3, golden=4))
    store.serve(3)
    with pytest.raises(DeploymentError, match=r"Release 3 was taken back: .*release 1 serves on"):
        follower.follow_once(store)
    assert follower.answer() == 1


@pytest.mark.parametrize(
    ("gone", "fault"),
    [
        ("multiply/model.onnx", "Release 2 in s3://.* is damaged: multiply/model.onnx is missing"),
        ("manifest.json", r"holds no release 2. There are: \[1\]"),
    ],
)
def test_a_release_of_which_an_object_is_gone_is_refused(follower, store, gone, fault):
    follower.follow_once(store)
    store.serve(2)
    remove(store, f"releases/000002/{gone}")
    with pytest.raises((DeploymentError, InputError), match=fault):
        follower.follow_once(store)
    assert follower.answer() == 1
    assert follower.pulled_releases() == {"000001"}


def test_what_was_pulled_is_loaded_again_without_its_files_in_the_store(follower, store):
    follower.follow_once(store)
    for name in ("multiply/model.onnx", "golden.json"):
        remove(store, f"releases/000001/{name}")
    assert follower.follow_once(store) is None
    follower.clear()
    assert follower.follow_once(store).release == 1
    assert follower.answer() == 1


def test_a_store_that_names_no_release_is_reported(follower, s3):
    with pytest.raises(InputError, match="names no release to serve; push one"):
        follower.follow_once(ReleaseStore(s3))


def test_pulled_releases_go_with_those_of_the_model_repository(follower, store, tmp_path):
    store.push(make_release(tmp_path / "3", 3))
    (follower.pulled / ".000009.killed").mkdir(parents=True)
    for number in (1, 2, 3):
        store.serve(number)
        follower.follow_once(store)
    assert follower.settings.keep_releases == 2
    assert follower.pulled_releases() == {"000002", "000003"}


# -- Look after look -------------------------------------------------------------------------------


def test_a_damaged_release_is_tried_ever_more_seldom_and_another_one_at_once(
    follower, store, tmp_path, monkeypatch, caplog
):
    store.push(make_release(tmp_path / "3", 3))
    damage(store, 2)
    served = []
    looks = Looks(
        monkeypatch,
        22,
        after_1=lambda: store.serve(2),
        after_20=lambda: served.append(follower.answer()) or store.serve(3),
    )
    with caplog.at_level(logging.INFO, logger="watchrank"):
        follower.follow(store, looks)
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0] == "Release 1 serves."
    assert messages[-1] == "Release 3 serves."
    assert len(messages[1:-1]) == 4  # at the looks 1, 3, 7 and 15
    assert all(re.search("Release 2 in .* is damaged", message) for message in messages[1:-1])
    assert served == [1]
    assert follower.answer() == 3


def test_a_store_that_cannot_be_reached_stops_nothing(follower, tmp_path, s3, monkeypatch, caplog):
    first = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    first.start()
    host, port = first.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    store = ReleaseStore(s3)
    for number in (1, 2):
        store.push(make_release(tmp_path / str(number), number))
    store.serve(1)
    follower.follow_once(store)
    store.serve(2)
    first.stop()
    second = ThreadedMotoServer(ip_address=host, port=port, verbose=False)
    served = []
    looks = Looks(monkeypatch, 2, after_1=lambda: served.append(follower.answer()) or second.start())
    with caplog.at_level(logging.INFO, logger="watchrank"):
        follower.follow(store, looks)
    second.stop()
    messages = [record.getMessage() for record in caplog.records]
    assert re.search(r"The release store s3://.* cannot be used .*[Cc]onnect", messages[0])
    assert messages[1:] == ["Release 2 serves."]
    assert served == [1]


def test_a_store_that_cannot_be_reached_at_first_is_followed_later(follower, store, monkeypatch, caplog):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    looks = Looks(monkeypatch, 2, after_1=server.start)
    with caplog.at_level(logging.INFO, logger="watchrank"):
        follower.follow(ReleaseStore(store.url), looks)
    server.stop()
    messages = [record.getMessage() for record in caplog.records]
    assert re.search(r"The release store s3://.* cannot be used .*[Cc]onnect", messages[0])
    assert messages[1:] == ["Release 1 serves."]
    assert follower.answer() == 1


# -- Deploying through the store -------------------------------------------------------------------


@pytest.fixture
def following(follower, store):
    """A Triton that serves what the store names, as long as the test lasts."""
    looks = SimpleNamespace(interval=0.1, wait=(stop := Event()).wait)
    thread = Thread(target=follower.follow, args=(store, looks))
    thread.start()
    yield follower
    stop.set()
    thread.join()


def test_a_rollout_ends_once_triton_serves_the_release(following, store, tmp_path):
    assert roll_out(make_release(tmp_path / "3", 3), store, following.settings, 60) == 3
    assert following.answer() == 3
    assert store.serving() == 3
    switch(2, store, following.settings, 60)
    assert following.answer() == 2
    assert champion(store, tmp_path / "releases") == tmp_path / "releases" / "000002"


def test_a_release_that_answers_wrongly_does_not_stay_named(following, store, tmp_path):
    switch(1, store, following.settings, 60)
    wrong = make_release(tmp_path / "wrong", 3, golden=4)
    sentence = (
        r"^Release 3 does not serve: Triton at \S+ serves release 1 after 5 s; s3://\S+ names release 1\. "
    )
    with pytest.raises(DeploymentError, match=sentence):
        roll_out(wrong, store, following.settings, 5)
    assert store.serving() == 1
    assert following.answer() == 1
    switch(2, store, following.settings, 60)
    assert following.answer() == 2


# -- The command line ------------------------------------------------------------------------------


def watchrank(*arguments):
    command = [sys.executable, "-c", "from watchrank.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_push_follow_and_roll_back_by_command(running, s3, tmp_path):
    running.clear()
    workspace, store = ["--workspace", running.repository.parent], ["--store", s3]
    for number in (1, 2):
        make_release(running.repository.parent / "releases" / f"{number:06d}", number)
        done = watchrank("push", *workspace, *store)
        assert done.stdout == f"{s3} names release {number} to serve.\n", done.stderr
    reached = [
        f"--set=deployment.{name}={value}"
        for name, value in running.settings.model_dump().items()
        if name.endswith("_url")
    ]
    done = watchrank("follow", "--once", *workspace, *store, *reached)
    assert done.returncode == 0, done.stderr
    assert running.answer() == 2
    done = watchrank("rollback", *store)
    assert done.stdout == f"{s3} names release 1 to serve.\n", done.stderr
    assert re.search(r"│ 1 .* serves │\n│ 2 .*  │\n", watchrank("releases", *store).stdout)
    command = ["follow", "--interval", "0.1", *workspace, *store, *reached]
    program = [sys.executable, "-c", "from watchrank.cli import main; main()", *map(str, command)]
    log = tmp_path / "log"
    with (
        log.open("w") as error,
        subprocess.Popen(program, stdout=subprocess.PIPE, stderr=error, text=True) as following,
    ):
        deadline = time.monotonic() + 60
        done = "Release 1 serves."  # stopped between the first answer and this, it takes the release back
        while done not in log.read_text() and following.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        following.send_signal(signal.SIGTERM)
        out, _ = following.communicate(timeout=60)
    assert (following.returncode, out) == (0, "Stopped.\n"), log.read_text()
    assert running.answer() == 1
    done = watchrank("push", "--release", 2, "--no-serve", *workspace, *store)
    assert done.stdout == f"{s3} names release 1 to serve.\n", done.stderr
    done = watchrank("rollback", *store)
    assert done.returncode == 2
    assert "holds no release before 1" in done.stderr
