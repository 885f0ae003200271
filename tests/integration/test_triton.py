"""The real Triton server: what it answers, what it refuses, and how a release comes and goes."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import urllib.error
import urllib.request
import venv
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tritonclient.grpc as grpc
import tritonclient.http as http
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException

from watchrank.config import DeploymentSettings
from watchrank.deployment import model_repository as store
from watchrank.deployment.administration import admin_headers
from watchrank.deployment.deploy import deploy, release_before
from watchrank.deployment.local_server import LocalTriton, Ports
from watchrank.errors import DeploymentError, InputError
from watchrank.export.triton_config import triton_config
from watchrank.releases import checksums
from watchrank.schema import RANKING_INPUTS, RANKING_OUTPUTS, Tensor
from watchrank.serving.client import TritonClient, infer_inputs

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("now", "watched_seconds", "video_id", "duration_seconds")
INPUTS = [tensor for tensor in RANKING_INPUTS if tensor.name in NAMES]
AGE = next(tensor for tensor in RANKING_INPUTS if tensor.name == "age")
DTYPES = {"int64": TensorProto.INT64, "float32": TensorProto.FLOAT}
CONFIG = triton_config("ranking", INPUTS, RANKING_OUTPUTS, max_batch_size=64)


# -- Models, requests, releases --------------------------------------------------------------------


def onnx_model(nodes, inputs, outputs, constants):
    graph = helper.make_graph(nodes, "test", inputs, outputs, constants)
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])


def value(tensor):
    dims = ["batch", *("candidates" if size == -1 else size for size in tensor.dims)]
    return helper.make_tensor_value_info(tensor.name, DTYPES[tensor.dtype], dims)


def ranking_model(factor, extra=None):
    """factor * (duration + mean watched seconds + video id modulo 7 + time of day), plus an extra input"""
    nodes = [
        helper.make_node("ReduceMean", ["watched_seconds", "axis"], ["mean"]),
        helper.make_node("Mod", ["video_id", "seven"], ["rest"]),
        helper.make_node("Cast", ["rest"], ["rest_seconds"], to=TensorProto.FLOAT),
        helper.make_node("Mod", ["now", "day"], ["time"]),
        helper.make_node("Cast", ["time"], ["time_seconds"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["duration_seconds", "mean"], ["sum_1"]),
        helper.make_node("Add", ["sum_1", "rest_seconds"], ["sum_2"]),
        helper.make_node("Add", ["sum_2", "time_seconds"], ["sum_3"]),
        helper.make_node("Mul", ["sum_3", "factor"], ["expected_watch_time" if extra is None else "product"]),
    ]
    if extra:
        nodes.append(helper.make_node("Add", ["product", extra.name], ["expected_watch_time"]))
    constants = [
        helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
        helper.make_tensor("seven", TensorProto.INT64, [], [7]),
        helper.make_tensor("day", TensorProto.INT64, [], [86_400]),
        helper.make_tensor("factor", TensorProto.FLOAT, [], [factor]),
    ]
    inputs = [*INPUTS, extra] if extra else INPUTS
    return onnx_model(nodes, [value(tensor) for tensor in inputs], [value(RANKING_OUTPUTS[0])], constants)


def ranking_answer(request, factor):
    rest = (request["video_id"] % 7).astype(np.float32)
    time_of_day = (request["now"] % 86_400).astype(np.float32)
    mean = request["watched_seconds"].mean(axis=1, keepdims=True)
    return (request["duration_seconds"] + mean + rest + time_of_day) * np.float32(factor)


def ranking_request(seed=0, batch=2, candidates=5):
    random = np.random.default_rng(seed)
    return {
        "now": random.integers(1_700_000_000, 1_800_000_000, (batch, 1)),
        "watched_seconds": random.uniform(0, 100, (batch, 50)).astype(np.float32),
        "video_id": random.integers(0, 2**60, (batch, candidates)),
        "duration_seconds": random.uniform(0, 600, (batch, candidates)).astype(np.float32),
    }


GRAPH = ranking_model(2).SerializeToString()


def golden(request, answer):
    return {
        "model": "ranking",
        "inputs": {name: array.tolist() for name, array in request.items()},
        "outputs": {"expected_watch_time": answer.tolist()},
    }


def write_release(folder, number, graph, config, requests):
    files = folder / "ranking"
    files.mkdir(parents=True)
    (files / "model.onnx").write_bytes(graph)
    (files / "config.pbtxt").write_text(config)
    (folder / "golden.json").write_text(json.dumps({"tolerance": 1e-4, "requests": requests}))
    manifest = {"release": number, "endpoints": ["ranking"], "files": checksums(folder)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def make_release(folder, number, factor, *, config=CONFIG, golden_factor=None, cut=None):
    """Write a release; `cut` truncates its graph, `golden_factor` makes its golden answers wrong."""
    graph = ranking_model(factor).SerializeToString()[:cut]
    requests = [ranking_request(seed) for seed in range(2)]
    answers = [ranking_answer(request, golden_factor or factor) for request in requests]
    return write_release(folder, number, graph, config, list(map(golden, requests, answers)))


# -- The server ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return tmp_path_factory.mktemp("repository")


@pytest.fixture(scope="module")
def server(triton_venv, repository, tmp_path_factory):
    state = tmp_path_factory.mktemp("state")
    with LocalTriton(venv=triton_venv, repository=repository, state=state) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with grpc.InferenceServerClient(server.settings.grpc_url) as client:
        yield client


@pytest.fixture
def no_ranking(client, server, repository):
    """The server as it is before the first deployment."""
    headers = admin_headers(server.settings)
    if store.read_endpoint(repository, "ranking"):
        client.unload_model("ranking", headers=headers)
        store.write_endpoint(repository, "ranking", None)
    for number in store.releases(repository):
        for name in store.models_of(repository, number):
            client.unload_model(name, headers=headers)
        store.remove(repository, number)


@pytest.fixture
def ranking(server, repository, request, tmp_path):
    """The settings of a server on which one release, with the factor 2, is deployed."""
    if store.releases(repository) != [1] or store.serving(repository, "ranking") != 1:
        request.getfixturevalue("no_ranking")
        deploy(make_release(tmp_path / "first", 1, 2), repository, server.settings)
    return server.settings


def serve(client, server, repository, name, model, config):
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    onnx.save(model, folder / "1" / "model.onnx")
    (folder / "config.pbtxt").write_text(config)
    client.load_model(name, headers=admin_headers(server.settings))


def rank(settings, *requests):
    """Send requests to the endpoint of ranking, one after another over one connection."""

    async def ask():
        async with TritonClient(settings) as client:
            return [await client.infer("ranking", request) for request in requests]

    return asyncio.run(ask())


def infer(client, name, arrays):
    return client.infer(name, infer_inputs(grpc.InferInput, arrays))


def processes_of_group(group):
    """Return the processes that are alive in a process group."""
    stats = [path.read_text().rpartition(") ")[2].split() for path in Path("/proc").glob("[0-9]*/stat")]
    return [stat for stat in stats if int(stat[2]) == group and stat[0] != "Z"]


# -- Answers ---------------------------------------------------------------------------------------


def test_grpc_and_http_answer_as_onnx_runtime_does(client, server, ranking):
    request = ranking_request(seed=5, batch=3, candidates=200)
    session = ort.InferenceSession(ranking_model(2).SerializeToString())
    expected = session.run(None, request)[0]
    np.testing.assert_allclose(expected, ranking_answer(request, 2), rtol=1e-5)
    over_grpc = infer(client, "ranking", request).as_numpy("expected_watch_time")
    with http.InferenceServerClient(server.settings.http_url) as web:
        answer = web.infer("ranking", infer_inputs(http.InferInput, request))
    np.testing.assert_array_equal(over_grpc, expected)
    np.testing.assert_array_equal(answer.as_numpy("expected_watch_time"), expected)


def test_the_client_sends_what_the_model_takes(ranking):
    request = ranking_request()
    unused = {"age": np.full((2, 1), 30, dtype=np.float32)}
    (answer,) = rank(ranking, request | unused)
    assert list(answer) == ["expected_watch_time"]
    np.testing.assert_allclose(answer["expected_watch_time"], ranking_answer(request, 2), rtol=1e-5)


BAD_REQUESTS = {  # what is wrong: the change, what the server says, what the client says
    "wrong shape": (
        {"watched_seconds": np.zeros((2, 49), np.float32)},
        "watched_seconds.*49",
        r"^Tensor 'watched_seconds' has shape \(2, 49\); give \[batch, 50\], batch is 2",
    ),
    "wrong rank": (
        {"now": np.zeros(2, np.int64)},
        "now",
        r"^Tensor 'now' has shape \(2,\); give \[batch, 1\]",
    ),
    "wrong dtype": (
        {"duration_seconds": np.zeros((2, 5))},
        "duration_seconds.*FP64.*FP32",
        "^Tensor 'duration_seconds' is float64; give it as float32",
    ),
    "missing input": ({"now": None}, "now", "^Tensor 'now' is missing; the model takes now, watched"),
    "other number of candidates": (
        {"video_id": np.zeros((2, 4), np.int64)},
        "Add",
        r"^Tensor 'duration_seconds' has shape \(2, 5\); give \[batch, K\], batch is 2, K is 4",
    ),
    "other batch": (
        {"video_id": np.zeros((3, 5), np.int64)},
        "video_id",
        r"^Tensor 'video_id' has shape \(3, 5\); give \[batch, K\], batch is 2, K is 5",
    ),
}


def changed(changes):
    return {name: array for name, array in (ranking_request() | changes).items() if array is not None}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_the_server_refuses_a_bad_request_and_goes_on(client, ranking, case):
    changes, server_says, _ = BAD_REQUESTS[case]
    with pytest.raises(InferenceServerException, match=server_says):
        infer(client, "ranking", changed(changes))
    request = ranking_request()
    answer = infer(client, "ranking", request).as_numpy("expected_watch_time")
    np.testing.assert_allclose(answer, ranking_answer(request, 2), rtol=1e-5)


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_the_client_says_what_is_wrong_with_a_tensor(ranking, case):
    changes, _, client_says = BAD_REQUESTS[case]
    with pytest.raises(InputError, match=client_says):
        rank(ranking, changed(changes))


def test_the_client_refuses_a_tensor_that_the_schema_does_not_know(ranking):
    with pytest.raises(InputError, match="'mood' is no input"):
        rank(ranking, ranking_request() | {"mood": np.zeros((2, 1), np.int64)})


def test_a_batch_above_the_maximum_is_refused(ranking):
    with pytest.raises(InputError, match="64"):
        rank(ranking, ranking_request(batch=65))


def test_the_client_says_when_there_is_no_server():
    nowhere = DeploymentSettings(grpc_url=f"127.0.0.1:{Ports.free().grpc}")
    with pytest.raises(DeploymentError, match="cannot be reached"):
        rank(nowhere, ranking_request())


def test_the_client_says_when_there_is_no_model(server, no_ranking):
    with pytest.raises(DeploymentError, match="ranking"):
        rank(server.settings, ranking_request())


def test_the_client_follows_a_release_that_takes_another_input(ranking, repository, tmp_path):
    request = ranking_request()
    with_age = request | {"age": np.array([[30], [50]], dtype=np.float32)}
    answer = ranking_answer(request, 2) + with_age["age"]
    config = triton_config("ranking", [*INPUTS, AGE], RANKING_OUTPUTS, max_batch_size=64)
    graph = ranking_model(2, extra=AGE).SerializeToString()
    release = write_release(tmp_path / "next", 2, graph, config, [golden(with_age, answer)])

    async def ask_across_the_switch():
        async with TritonClient(ranking) as client:
            await client.infer("ranking", with_age)
            await asyncio.to_thread(deploy, release, repository, ranking)
            found = await client.infer("ranking", with_age)
            np.testing.assert_allclose(found["expected_watch_time"], answer, rtol=1e-5)
            with pytest.raises(InputError, match="'age' is missing"):
                await client.infer("ranking", request)

    asyncio.run(ask_across_the_switch())


def test_strings_go_through(client, server, repository):
    model = onnx_model(
        [helper.make_node("Identity", ["text"], ["same"])],
        [helper.make_tensor_value_info("text", TensorProto.STRING, ["batch", 2])],
        [helper.make_tensor_value_info("same", TensorProto.STRING, ["batch", 2])],
        [],
    )
    config = triton_config("text", [], [], max_batch_size=8)
    for kind, name in (("input", "text"), ("output", "same")):
        config += f'{kind} {{ name: "{name}" data_type: TYPE_STRING dims: [ 2 ] }}\n'
    serve(client, server, repository, "text", model, config)
    texts = np.array([["a cat", "一只猫"]], dtype=np.object_)
    answer = infer(client, "text", {"text": texts}).as_numpy("same")
    assert [[text.decode() for text in row] for row in answer] == texts.tolist()
    with pytest.raises(InferenceServerException, match="UTF-8"):
        infer(client, "text", {"text": np.array([[b"\xff", b""]], dtype=np.object_)})


# -- Batching --------------------------------------------------------------------------------------

COUNTED = Tensor(name="number", dtype="int64", dims=(1,), description="an index into a table of ten")
ROWS = Tensor(name="rows", dtype="int64", dims=(1,), description="rows in the run of the graph")


@pytest.fixture(scope="module")
def counting(client, server, repository):
    """A model that answers with the size of the batch it ran in, and fails for a number above 9."""
    nodes = [
        helper.make_node("Gather", ["table", "number"], ["looked_up"]),
        helper.make_node("Shape", ["looked_up"], ["size"], start=0, end=1),
        helper.make_node("Add", ["looked_up", "size"], ["rows"]),
    ]
    table = [helper.make_tensor("table", TensorProto.INT64, [10], [0] * 10)]
    model = onnx_model(nodes, [value(COUNTED)], [value(ROWS)], table)
    config = triton_config(
        "counting", [COUNTED], [ROWS], max_batch_size=16, max_queue_delay_microseconds=300_000
    )
    serve(client, server, repository, "counting", model, config)
    return "counting"


def count_rows(client, model, numbers):
    """Send every number as a request of its own, all at once; return the answers or errors."""

    def ask(number):
        try:
            return int(infer(client, model, {"number": np.array([[number]])}).as_numpy("rows")[0, 0])
        except InferenceServerException as error:
            return error.message()

    with ThreadPoolExecutor(len(numbers)) as pool:
        return list(pool.map(ask, numbers))


def test_requests_that_arrive_together_run_together(client, counting):
    before = client.get_inference_statistics(counting).model_stats[0]
    answers = count_rows(client, counting, [1] * 12)
    deadline = time.monotonic() + 10
    after = before
    while after.inference_count - before.inference_count < 12 and time.monotonic() < deadline:
        after = client.get_inference_statistics(counting).model_stats[0]  # counted after the answer is sent
    assert after.inference_count - before.inference_count == 12
    assert after.execution_count - before.execution_count <= 4
    assert max(answers) >= 3


def test_a_request_that_fails_does_not_fail_those_it_ran_with(client, counting):
    answers = count_rows(client, counting, [1, 2, 99, 3])
    assert "out of" in answers[2]
    assert [type(answer) for answer in answers] == [int, int, str, int]


# -- Releases --------------------------------------------------------------------------------------


def successes(settings, model):
    with urllib.request.urlopen(f"http://{settings.metrics_url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    wanted = f'nv_inference_request_success{{model="{model}",version="1"}} '
    return sum(float(line.removeprefix(wanted)) for line in lines if line.startswith(wanted))


def assert_serves(client, repository, number, factor):
    request = ranking_request(seed=9)
    answer = infer(client, "ranking", request).as_numpy("expected_watch_time")
    np.testing.assert_allclose(answer, ranking_answer(request, factor), rtol=1e-5)
    assert store.serving(repository, "ranking") == number


def test_a_release_is_loaded_tested_and_counted(client, server, repository, no_ranking, tmp_path):
    before = successes(server.settings, "ranking_000001")
    deployed = deploy(make_release(tmp_path / "first", 1, 2), repository, server.settings)
    assert (deployed.release, deployed.serves, deployed.requests) == (1, True, 2)
    assert successes(server.settings, "ranking_000001") - before >= 4
    assert_serves(client, repository, 1, 2)


def test_the_last_releases_stay_loaded_the_others_go(client, ranking, repository, tmp_path):
    assert deploy(make_release(tmp_path / "second", 2, 3), repository, ranking).removed == []
    assert deploy(make_release(tmp_path / "third", 3, 4), repository, ranking).removed == [1]
    assert store.releases(repository) == [2, 3]
    assert_serves(client, repository, 3, 4)
    assert client.is_model_ready("ranking_000002")
    assert not client.is_model_ready("ranking_000001")


def test_rolling_back_is_deploying_the_release_before(client, ranking, repository, tmp_path):
    deploy(make_release(tmp_path / "second", 2, 3), repository, ranking)
    assert release_before(repository, "ranking") == 1
    deploy(make_release(tmp_path / "again", 1, 2), repository, ranking)
    assert_serves(client, repository, 1, 2)
    assert store.releases(repository) == [1, 2]
    with pytest.raises(InputError, match="holds no release before 1"):
        release_before(repository, "ranking")


def test_a_release_can_be_loaded_beside_the_one_that_serves(client, ranking, repository, tmp_path):
    deployed = deploy(make_release(tmp_path / "second", 2, 3), repository, ranking, switch=False)
    assert not deployed.serves
    assert_serves(client, repository, 1, 2)
    request = ranking_request()
    beside = infer(client, "ranking_000002", request).as_numpy("expected_watch_time")
    np.testing.assert_allclose(beside, ranking_answer(request, 3), rtol=1e-5)


def test_two_deployments_at_once_come_one_after_the_other(client, ranking, repository, tmp_path):
    releases = [make_release(tmp_path / str(number), number, number + 1) for number in (2, 3)]
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda release: deploy(release, repository, ranking), releases))
    assert {deployed.release for deployed in done} == {2, 3}
    number = store.serving(repository, "ranking")
    assert_serves(client, repository, number, number + 1)


@pytest.mark.parametrize("way", ["grpc", "http"])
def test_callers_cannot_load_or_unload_models(client, server, ranking, way):
    if way == "grpc":
        with pytest.raises(InferenceServerException, match="restricted"):
            client.unload_model("ranking")
    else:
        url = f"http://{server.settings.http_url}/v2/repository/models/ranking/unload"
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(urllib.request.Request(url, data=b"{}", method="POST"))
    assert client.is_model_ready("ranking")


def test_the_key_of_the_administration_is_for_its_owner_only(server):
    assert server.settings.admin_key_file.stat().st_mode & 0o777 == 0o600


def test_without_the_key_nothing_is_deployed(client, ranking, repository, tmp_path):
    settings = ranking.model_copy(update={"admin_key_file": None})
    with pytest.raises(DeploymentError, match=r"taken back: .*restricted.*did not follow"):
        deploy(make_release(tmp_path / "second", 2, 3), repository, settings)
    assert_serves(client, repository, 1, 2)


KILLED_DEPLOYMENT = """
import os, signal, sys
from pathlib import Path
from watchrank.config import DeploymentSettings
from watchrank.deployment import deploy as module
from watchrank.object_storage import ObjectStore

settings = DeploymentSettings.model_validate_json(sys.argv[3])
steps = int(sys.argv[4])

def counted(function):
    def call(*arguments, **options):
        global steps
        steps -= 1
        if steps < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call

changes = [(ObjectStore, name) for name in ("write", "replace", "make_folder", "remove", "remove_folder")]
for place, name in [*changes, (module._Server, "load"), (module._Server, "unload")]:
    setattr(place, name, counted(getattr(place, name)))
module.deploy(Path(sys.argv[1]), Path(sys.argv[2]), settings)
"""


@pytest.mark.slow
def test_a_deployment_killed_at_any_step_leaves_one_whole_release(client, ranking, repository, tmp_path):
    first, second = make_release(tmp_path / "one", 1, 2), make_release(tmp_path / "two", 2, 3)
    request = ranking_request(seed=9)
    settings = ranking.model_copy(update={"keep_releases": 1})
    answered, killed = set(), 0
    while True:
        deploy(first, repository, settings)
        command = [sys.executable, "-c", KILLED_DEPLOYMENT, second, repository, settings.model_dump_json()]
        done = subprocess.run([*command, str(killed)], check=False)
        answer = infer(client, "ranking", request).as_numpy("expected_watch_time")
        of = [n for n in (1, 2) if np.allclose(answer, ranking_answer(request, n + 1), rtol=1e-5)]
        assert len(of) == 1
        answered.update(of)
        pointed = store.serving(repository, "ranking")
        assert (repository / f"ranking_{pointed:06d}" / "1" / "model.onnx").is_file()
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
        killed += 1
    assert killed >= 6
    assert answered == {1, 2}
    assert_serves(client, repository, 2, 3)
    assert store.releases(repository) == [2]


def damaged(folder):
    with (folder / "ranking" / "model.onnx").open("ab") as file:
        file.write(b"x")
    return folder


WRONG_DIMS = CONFIG.replace("dims: [ 50 ]", "dims: [ 49 ]")
BROKEN_RELEASES = {
    "truncated graph": (
        lambda folder: make_release(folder, 2, 3, cut=200),
        "ranking/model.onnx must not be loaded: it is no ONNX file",
    ),
    "wrong golden answers": (
        lambda folder: make_release(folder, 2, 3, golden_factor=4),
        "expected_watch_time over gRPC is .* where the golden answer is .*release 1 serves on",
    ),
    "configuration unlike the graph": (
        lambda folder: make_release(folder, 2, 3, config=WRONG_DIMS),
        r"watched_seconds.*\[-1, 49\].*\[-1, 50\].*release 1 serves on",
    ),
    "configuration that does not parse": (
        lambda folder: make_release(folder, 2, 3, config="max_batch_size: many"),
        "taken back.*is no configuration of Triton.*release 1 serves on",
    ),
    "wrong checksum": (lambda folder: damaged(make_release(folder, 2, 3)), "ranking/model.onnx"),
    "no golden request": (lambda folder: write_release(folder, 2, GRAPH, CONFIG, []), "no golden request"),
}


@pytest.mark.parametrize(("make", "reason"), BROKEN_RELEASES.values(), ids=BROKEN_RELEASES)
def test_a_broken_release_changes_nothing(client, ranking, repository, tmp_path, make, reason):
    with pytest.raises(DeploymentError, match=reason) as failure:
        deploy(make(tmp_path / "broken"), repository, ranking)
    assert "\n" not in str(failure.value)
    assert_serves(client, repository, 1, 2)
    assert store.releases(repository) == [1]
    assert not client.is_model_ready("ranking_000002")


def test_a_broken_first_release_leaves_no_model(client, server, repository, no_ranking, tmp_path):
    with pytest.raises(DeploymentError, match="nothing served before"):
        deploy(make_release(tmp_path / "broken", 1, 2, golden_factor=3), repository, server.settings)
    assert store.read_endpoint(repository, "ranking") is None
    assert store.releases(repository) == []
    assert not client.is_model_ready("ranking")


class EmptyPage(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def empty_page():
    """The address of a web server whose every page is empty."""
    with HTTPServer(("127.0.0.1", 0), EmptyPage) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{web.server_port}"
        web.shutdown()


def test_metrics_that_do_not_count_take_the_release_back(client, ranking, repository, empty_page, tmp_path):
    settings = ranking.model_copy(update={"metrics_url": empty_page, "timeout_seconds": 1})
    with pytest.raises(DeploymentError, match=r"metrics do not count.*release 1 serves on"):
        deploy(make_release(tmp_path / "second", 2, 3), repository, settings)
    assert_serves(client, repository, 1, 2)


def test_metrics_that_are_not_there_take_the_release_back(client, ranking, repository, tmp_path):
    settings = ranking.model_copy(update={"metrics_url": f"127.0.0.1:{Ports.free().metrics}"})
    with pytest.raises(DeploymentError, match=r"refused.*release 1 serves on"):
        deploy(make_release(tmp_path / "second", 2, 3), repository, settings)
    assert_serves(client, repository, 1, 2)


def test_without_a_server_nothing_is_published(repository, no_ranking, tmp_path):
    nowhere = DeploymentSettings(grpc_url=f"127.0.0.1:{Ports.free().grpc}")
    with pytest.raises(DeploymentError, match="No Triton can be reached"):
        deploy(make_release(tmp_path / "release", 1, 2), repository, nowhere)
    assert store.releases(repository) == []


def test_a_folder_that_is_no_release_is_bad_input(repository, tmp_path):
    with pytest.raises(InputError, match="is no release"):
        deploy(tmp_path, repository, DeploymentSettings())


def test_an_answer_during_the_switch_is_of_one_of_the_two_releases(ranking, repository, tmp_path):
    request, answers, done = ranking_request(), [], threading.Event()

    def ask():
        with grpc.InferenceServerClient(ranking.grpc_url) as client:
            while not done.is_set():
                answers.append(infer(client, "ranking", request).as_numpy("expected_watch_time"))

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        try:
            for number, factor in ((2, 3), (3, 2), (4, 3)):
                deploy(make_release(tmp_path / str(number), number, factor), repository, ranking)
        finally:
            done.set()
        asking.result()
    old, new = ranking_answer(request, 2), ranking_answer(request, 3)
    kinds = [
        "old" if np.allclose(answer, old) else "new" if np.allclose(answer, new) else "neither"
        for answer in answers
    ]
    assert set(kinds) == {"old", "new"}


# -- The server's own life -------------------------------------------------------------------------


def test_stopping_leaves_no_process_and_the_server_can_start_again(triton_venv, tmp_path):
    server = LocalTriton(venv=triton_venv, repository=tmp_path / "repository", state=tmp_path / "state")
    with server:
        group = server.pid
        assert processes_of_group(group)
    assert not processes_of_group(group)
    assert not (tmp_path / "state" / "self_check" / "watchrank_self_check").exists()


def test_a_killed_parent_leaves_no_server(triton_venv, tmp_path):
    script = f"""
        import time
        from pathlib import Path
        from watchrank.deployment.local_server import LocalTriton
        folder = Path({str(tmp_path)!r})
        server = LocalTriton(venv=Path({str(triton_venv)!r}), repository=folder, state=folder / "state")
        server.start()
        print(server.pid, flush=True)
        time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        group = int(parent.stdout.readline())
        assert processes_of_group(group)
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 15
    while processes_of_group(group) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = processes_of_group(group)
    if left:
        os.killpg(group, signal.SIGKILL)
    assert not left


def test_a_server_that_is_stopped_from_outside_is_reported_with_its_log(triton_venv, tmp_path):
    with LocalTriton(venv=triton_venv, repository=tmp_path, state=tmp_path / "state") as server:
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(DeploymentError, match=r"(?s)Triton stopped; the end of .*Metrics Service"):
            server.wait()
        memory = f"watchrank_triton_{server.ports.grpc}_*"
        assert list(Path("/dev/shm").glob(memory))
    assert not list(Path("/dev/shm").glob(memory))


def test_a_model_that_does_not_load_at_the_start_is_reported_with_the_log(triton_venv, tmp_path):
    repository = tmp_path / "repository"
    (repository / "ranking" / "1").mkdir(parents=True)
    (repository / "ranking" / "1" / "model.onnx").write_bytes(b"no graph")
    (repository / "ranking" / "config.pbtxt").write_text(CONFIG)
    server = LocalTriton(
        venv=triton_venv, repository=repository, state=tmp_path / "state", models=["ranking"]
    )
    with pytest.raises(DeploymentError, match=r"(?s)stopped while it was starting.*ranking.*Protobuf"):
        server.start()


def test_a_model_that_is_not_in_the_repository_is_named(triton_venv, tmp_path):
    server = LocalTriton(venv=triton_venv, repository=tmp_path, state=tmp_path / "state", models=["ranking"])
    with pytest.raises(DeploymentError, match="no model 'ranking'"):
        server.start()


def test_a_port_that_is_taken_is_named(server, triton_venv, tmp_path):
    with pytest.raises(DeploymentError, match=server.settings.grpc_url):
        LocalTriton(venv=triton_venv, repository=tmp_path, state=tmp_path, ports=server.ports).start()


def test_a_missing_environment_is_named_with_the_remedy(tmp_path):
    with pytest.raises(DeploymentError, match=r"no Triton environment at .*make env"):
        LocalTriton(venv=tmp_path / "none", repository=tmp_path, state=tmp_path).start()


def test_numpy_2_in_the_servers_environment_is_found_out(triton_venv, tmp_path):
    """numpy 2 makes the server's Python backend read wrong inputs without an error."""
    assert int(np.__version__.split(".")[0]) >= 2
    venv.create(tmp_path / "venv", symlinks=True)
    packages, own = (Path("lib", f"python3.{sys.version_info[1]}", "site-packages"), Path(np.__file__).parent)
    for path in (triton_venv / packages).iterdir():
        if not path.name.startswith("numpy"):
            (tmp_path / "venv" / packages / path.name).symlink_to(path)
    for path in (own, own.with_name("numpy.libs")):
        (tmp_path / "venv" / packages / path.name).symlink_to(path)
    server = LocalTriton(venv=tmp_path / "venv", repository=tmp_path / "models", state=tmp_path / "state")
    with pytest.raises(DeploymentError, match="wrong numbers"):
        server.start()
