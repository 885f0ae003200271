"""Requests that are wrong in every way, to the real Triton through the typed client, and over HTTP."""

import asyncio
import contextlib
import json
import re
import socket
import urllib.error
import urllib.parse
import urllib.request
from datetime import UTC, datetime

import hypothesis.extra.numpy as numpy_strategies
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from watchrank.errors import InputError
from watchrank.feature_store import online_user_features
from watchrank.schema import PAD_ID, RECOMMEND_INPUTS
from watchrank.serving.client import TritonClient
from watchrank.serving.question import Question

NOW = int(datetime(2026, 1, 8, 12, tzinfo=UTC).timestamp())
CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
ASK = {"user_ids": [1, 3], "now": NOW, "k": 4}


# -- Triton ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def infer(triton, store):
    """Return a function that asks `recommend` for one user, with some tensors changed."""
    request = online_user_features(store, [1]) | Question(now=NOW).tensors(1)

    def infer(changes):
        async def once():
            async with TritonClient(triton.settings) as client:
                return await client.infer("recommend", request | changes)

        return asyncio.run(once())

    return infer


@pytest.fixture(scope="module")
def right_answer(infer):
    return infer({})


EXTREMES = {
    "int64": st.sampled_from([0, 1, -1, -2, 2**31, 2**63 - 1, -(2**63)]) | st.integers(-(2**63), 2**63 - 1),
    "float32": st.floats(width=32),
}
KINDS = st.sampled_from(["int64", "int32", "float32", "float64", "bool", "U3", "S3"])
SHAPES = numpy_strategies.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)


@st.composite
def changes(draw):
    """Some inputs with values that fit their type, and at times one of any type and shape, or of any name."""
    found = {}
    for tensor in draw(st.lists(st.sampled_from(RECOMMEND_INPUTS), max_size=4)):
        dims = [draw(st.integers(0, 9)) if size == -1 else size for size in tensor.dims]
        elements = EXTREMES[tensor.dtype]
        found[tensor.name] = draw(numpy_strategies.arrays(tensor.dtype, (1, *dims), elements=elements))
    if draw(st.booleans()):
        name = draw(st.sampled_from([spec.name for spec in RECOMMEND_INPUTS]) | st.text(max_size=5))
        found[name] = draw(numpy_strategies.arrays(draw(KINDS), draw(SHAPES)))
    return found


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(changes=changes())
def test_any_request_gets_a_finite_answer_or_a_sentence(infer, right_answer, changes):
    with contextlib.suppress(InputError):
        answer = infer(changes)
        videos = answer["video_ids"][0]
        places = int((videos != PAD_ID).sum())
        assert (videos[places:] == PAD_ID).all()
        assert len(set(videos[:places].tolist())) == places
        assert np.isfinite(answer["expected_watch_time"]).all()
    for name, values in infer({}).items():
        np.testing.assert_array_equal(values, right_answer[name])


# -- HTTP ------------------------------------------------------------------------------------------


def call(url, data=None, method=None, **headers):
    """Return the status and the sentence of a refusal, or the answers."""
    headers = {"Content-Type": "application/json"} | headers
    request = urllib.request.Request(url, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())["detail"]


def body(**changes):
    return json.dumps(ASK | changes).encode()


BAD = {
    "an id above 64 bits": ("/recommend/9223372036854775808", None, 422, "user_id: .* 9223372036854775807"),
    "an id below 0": ("/recommend/-1", None, 422, "user_id: .*greater than or equal to 0"),
    "an id of letters": ("/recommend/one", None, 422, "user_id: .*valid integer"),
    "k of 0 in the address": ("/recommend/1?k=0", None, 422, "k: .*greater than or equal to 1"),
    "an unknown parameter": ("/recommend/1?limit=3", None, 422, "limit: Extra inputs are not permitted"),
    "an unknown parameter of the page": ("/?user=3", None, 422, "user: Extra inputs are not permitted"),
    "a search for nothing": ("/search", None, 422, "query: Field required"),
    "a long search": ("/search?query=" + "a" * 1_001, None, 422, "query: .*at most 1000 characters"),
    "a huge address": ("/search?query=" + "a" * 33_000, None, 414, "longer than 32,768 bytes"),
    "an unknown address": ("/recommendations", None, 404, "nothing at this address"),
    "no JSON": ("/recommend", b"user_ids=1", 422, "JSON decode error"),
    "no UTF-8": ("/recommend", b'{"user_ids": [1], "surface": "\xff"}', 422, "cannot be read as JSON"),
    "deep nesting": ("/recommend", b"[" * 50_000, 422, "cannot be read as JSON|JSON decode error"),
    "an integer of 5,000 digits": ("/recommend", b'{"user_ids": [%s]}' % (b"9" * 5_000), 422, "Bad input"),
    "a list": ("/recommend", b"[1]", 422, "valid dictionary"),
    "k of 0": ("/recommend", body(k=0), 422, "k: .*greater than or equal to 1"),
    "k of a fraction": ("/recommend", body(k=1.5), 422, "k: Input should be a valid integer"),
    "k as text": ("/recommend", body(k="3"), 422, "k: Input should be a valid integer"),
    "an excluded id above 64 bits": ("/recommend", body(excluded=[2**63]), 422, r"excluded\.0: "),
    "an excluded id below 0": ("/recommend", body(excluded=[-1]), 422, r"excluded\.0: "),
    "NaN diversity": ("/recommend", body(diversity=float("nan")), 422, "diversity: "),
    "an infinite diversity": ("/recommend", body(diversity=float("inf")), 422, "diversity: "),
    "a NaN weight": ("/recommend", body(score_weights={"like": float("nan")}), 422, "weight of like is nan"),
    "a weight above float32": ("/recommend", body(score_weights={"like": 1e39}), 422, "weight of like is 1e"),
    "a task that is not there": ("/recommend", body(score_weights={"share": 1}), 422, "'share_weight' is no"),
    "half a character": ("/recommend", b'{"user_ids": [1], "surface": "\\ud800"}', 422, "surface"),
    "a control character": ("/recommend", body(surface="a\0b"), 422, "surface .* is no printable text"),
    "a time after all times": ("/recommend", body(now=2**63), 422, "now: "),
    "too many users": ("/recommend", body(user_ids=list(range(101))), 422, "ask for 100 at most"),
    "a body above the limit": ("/recommend", b" " * 100_001, 413, "longer than 100,000 bytes"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_gets_a_sentence_and_the_next_one_its_answer(url, case):
    path, data, wanted, sentence = BAD[case]
    status, detail = call(f"{url}{path}", data)
    assert status == wanted
    assert isinstance(detail, str)
    assert re.search(sentence, detail), detail
    assert call(f"{url}/recommend", body())[0] == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_body_that_is_not_said_to_be_json_is_refused(url, kind):
    assert call(f"{url}/recommend", body(), **{"Content-Type": kind}) == (
        415,
        "The body is not said to be JSON; send it as `Content-Type: application/json`.",
    )
    assert call(f"{url}/recommend", body(), **{"Content-Type": "application/JSON; charset=utf-8"})[0] == 200


def test_an_address_that_does_not_take_a_method_says_so(url):
    status, detail = call(f"{url}/recommend", b"{}", method="PUT")
    assert (status, detail.partition(";")[0]) == (405, "This address does not take this method")


def test_bytes_that_are_no_http_leave_the_service_up(url):
    host, port = urllib.parse.urlsplit(url).hostname, urllib.parse.urlsplit(url).port
    for sent in (
        b"\0" * 100,
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * 200_000,
        b"POST /recommend HTTP/1.1\r\n",
    ):
        with socket.create_connection((host, port)) as connection:
            connection.sendall(sent)
    assert call(f"{url}/recommend", body())[0] == 200


ROUTES = [
    ("POST", "/recommend", "positive"),
    ("POST", "/recommend", "negative"),
    ("GET", "/recommend/{user_id}", "positive"),
    ("GET", "/recommend/{user_id}", "negative"),
    ("GET", "/search", "positive"),
    ("GET", "/search", "negative"),
    ("GET", "/", "positive"),
    ("GET", "/", "negative"),
    ("GET", "/health", "positive"),
]
"""The release has no titles to search: that is a 503."""


@pytest.fixture(scope="module")
def api(url):
    return schemathesis.openapi.from_url(f"{url}/openapi.json")


@pytest.mark.parametrize(("method", "path", "mode"), ROUTES, ids=lambda part: part)
def test_the_service_keeps_to_its_openapi(url, api, method, path, mode):
    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=api[path][method].as_strategy(GenerationMode(mode)))
    def keep(case):
        case.call_and_validate(checks=CHECKS if path == "/search" else [*CHECKS, not_a_server_error])

    keep()
    assert call(f"{url}/recommend", body())[0] == 200
