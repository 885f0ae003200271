"""What the guard refuses before a route sees it, called as a server calls it."""

import asyncio
import json

import pytest

from watchrank.config import ServingSettings
from watchrank.serving.guard import LONGEST_ADDRESS, Guard

JSON = {"content-type": "application/json"}
BEARER = {"authorization": "Bearer right"}


async def echo(scope, receive, send):
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def make(token=None, **settings):
    return Guard(echo, ServingSettings(**settings), token)


def ask(guard, path="/recommend", headers=(), parts=(b"",), query=b"", method="POST", address="1.2.3.4"):
    """Return the status, the headers and the body of the answer, and how many parts were read."""
    sent, read = [], []

    async def receive():
        read.append(parts[len(read)])
        return {"type": "http.request", "body": read[-1], "more_body": len(read) < len(parts)}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query,
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in {**dict(headers)}.items()],
        "client": (address, 1),
    }
    asyncio.run(guard(scope, receive, send))
    told = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], told, sent[1]["body"], len(read)


def status(*arguments, **options):
    return ask(*arguments, **options)[0]


def test_what_is_in_order_goes_through_as_it_was_sent():
    assert ask(make(), headers=JSON, parts=(b"one ", b"two"))[::2] == (200, b"one two")


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"authorization": "Bearer"},
        {"authorization": "Bearer "},
        {"authorization": "Bearer wrong"},
        {"authorization": "Bearer righ"},
        {"authorization": "Bearer right2"},
        {"authorization": "Bearer ríght"},
        {"authorization": "Basic right"},
        {"authorization": "right"},
        {"x-authorization": "Bearer right"},
    ],
)
@pytest.mark.parametrize("path", ["/recommend", "/metrics", "/", "/openapi.json", "/health/", "/Health"])
def test_without_the_token_only_health_is_told(given, path):
    guard = make(b"right")
    refused, told, body, read = ask(guard, path, given | JSON, (b"secret",))
    assert (refused, told["www-authenticate"], read) == (401, "Bearer", 0)
    assert b"right" not in body
    assert status(guard, path, given) == 401, "whatever else is wrong"
    assert status(guard, "/health", given, method="GET") == 200


def test_with_the_token_all_is_told():
    for word in ("Bearer", "bearer"):
        assert status(make(b"right"), headers={"authorization": f"{word} right"} | JSON) == 200


def test_a_wrong_token_spends_nothing_of_the_rate():
    guard = make(b"right", requests_per_second=1)
    assert {status(guard, headers=JSON) for _ in range(5)} == {401}
    assert status(guard, headers=BEARER | JSON) == 200


def test_each_address_has_its_rate_and_watchers_have_none():
    guard = make(requests_per_second=2)
    found = [ask(guard, headers=JSON) for _ in range(3)]
    assert [each[0] for each in found] == [200, 200, 429]
    assert found[2][1]["retry-after"] == "1"
    assert json.loads(found[2][2]) == {"detail": "Too many requests; ask again in 1 s."}
    assert status(guard, headers=JSON, address="1.2.3.5") == 200
    assert {status(guard, path, method="GET") for path in ("/health", "/metrics")} == {200}
    assert {status(make(requests_per_second=0), headers=JSON) for _ in range(50)} == {200}


@pytest.mark.parametrize(
    ("headers", "parts", "read"),
    [
        ({"content-length": "11"}, (b"x" * 11,), 0),
        ({"content-length": "-1"}, (b"",), 0),
        ({"content-length": "ten"}, (b"",), 0),
        ({"content-length": "1"}, (b"x" * 11,), 1),
        ({}, (b"x" * 6, b"x" * 6, b"x" * 6), 2),
    ],
)
def test_a_long_body_is_refused_as_soon_as_it_is_known(headers, parts, read):
    found = ask(make(max_request_bytes=10), headers=JSON | headers, parts=parts)
    assert (found[0], found[3]) == (413, read)
    assert status(make(max_request_bytes=10), headers=JSON, parts=(b"x" * 10,)) == 200


def test_a_long_address_is_refused():
    longest = b"x" * (LONGEST_ADDRESS - len("/search"))
    assert status(make(), "/search", query=longest, method="GET") == 200
    assert status(make(), "/search", query=longest + b"x", method="GET") == 414


@pytest.mark.parametrize("kind", ["", "text/plain", "application/jsonp", "application/x-www-form-urlencoded"])
def test_a_body_that_is_not_said_to_be_json_is_refused_unread(kind):
    found = ask(make(), headers={"content-type": kind}, parts=(b"{}",))
    assert (found[0], found[3]) == (415, 0)
    assert status(make(), headers={"content-type": "Application/JSON; charset=utf-8"}) == 200
