"""What callers of a real Triton may not do: its administration wants the key, over both protocols."""

import json
import urllib.error
import urllib.request

import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from watchrank.deployment.administration import HEADER, admin_headers
from watchrank.deployment.local_server import LocalTriton


@pytest.fixture(scope="module")
def server(triton_venv, tmp_path_factory):
    folder = tmp_path_factory.mktemp("triton")
    with LocalTriton(venv=triton_venv, repository=folder / "models", state=folder / "state") as running:
        yield running


@pytest.fixture(scope="module")
def key(server):
    return server.settings.admin_key_file.read_text()


HTTP = [
    ("POST", "repository/index"),
    ("POST", "repository/models/any/load"),
    ("POST", "repository/models/any/unload"),
    ("GET", "systemsharedmemory/status"),
    ("POST", "systemsharedmemory/region/any/register"),
    ("POST", "systemsharedmemory/unregister"),
    ("GET", "cudasharedmemory/status"),
    ("POST", "cudasharedmemory/unregister"),
    ("GET", "trace/setting"),
    ("POST", "trace/setting"),
    ("GET", "logging"),
    ("POST", "logging"),
]
GRPC = {
    "index": lambda client, **given: client.get_model_repository_index(**given),
    "load": lambda client, **given: client.load_model("any", **given),
    "unload": lambda client, **given: client.unload_model("any", **given),
    "shared memory": lambda client, **given: client.get_system_shared_memory_status(**given),
    "share memory": lambda client, **given: client.register_system_shared_memory("any", "/any", 8, **given),
    "CUDA's shared memory": lambda client, **given: client.get_cuda_shared_memory_status(**given),
    "trace": lambda client, **given: client.get_trace_settings(**given),
    "set trace": lambda client, **given: client.update_trace_settings(
        settings={"trace_file": "/tmp/any"}, **given
    ),
    "log": lambda client, **given: client.get_log_settings(**given),
    "set log": lambda client, **given: client.update_log_settings({"log_file": "/tmp/any"}, **given),
}


def call(server, method, path, headers):
    """Return the status and the text of a call over HTTP."""
    data = b"{}" if method == "POST" else None
    url = f"http://{server.settings.http_url}/v2/{path}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers, method=method)) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def said(ask, client, headers):
    """Return why a call over gRPC was refused, or an empty string."""
    try:
        ask(client, headers=headers)
    except InferenceServerException as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("method", "path"), HTTP)
def test_the_administration_is_closed_over_http(server, key, method, path):
    bearer = {"Authorization": f"Bearer {key}"}
    for headers in ({}, {HEADER: ""}, {HEADER: "wrong"}, {HEADER: key[:-1]}, bearer):
        status, told = call(server, method, path, headers)
        assert status == 403
        assert key not in told
    status, _ = call(server, method, path, {HEADER: key})
    assert status != 403


@pytest.mark.parametrize("ask", GRPC.values(), ids=GRPC)
def test_the_administration_is_closed_over_grpc(server, key, ask):
    (name,) = admin_headers(server.settings)
    with grpc.InferenceServerClient(server.settings.grpc_url) as client:
        for headers in (None, {name: "wrong"}, {name: key[:-1]}, {HEADER: key}):
            reason = said(ask, client, headers)
            assert "restricted" in reason
            assert key not in reason
        assert "restricted" not in said(ask, client, admin_headers(server.settings))


def test_callers_may_ask_for_health_and_statistics(server):
    assert call(server, "GET", "health/ready", {})[0] == 200
    assert json.loads(call(server, "GET", "models/stats", {})[1]) == {"model_stats": []}


def test_the_log_does_not_hold_the_key(server, key):
    assert key not in server.log.read_text()
