"""What stands before the routes: a caller's token, the rate of requests, the length of a request."""

import asyncio
import hmac
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from watchrank.config import ServingSettings
from watchrank.errors import InputError

OPEN = "/health"
"""Needs no token."""

UNLIMITED = ("/health", "/metrics")
"""Are answered at any rate: who watches the service must see it under load."""

LONGEST_ADDRESS = 32_768
"""Bytes of a request's path and query; a search of 1,000 letters can take 12,000."""

MOST_ADDRESSES = 10_000
"""Callers whose rates are kept."""


class Guard:
    """ASGI middleware that refuses what needs no look at the request's meaning.

    401 for a wrong token, 429 above the rate, 414 for a long address, 415 for a body that is no JSON, 413 for
    a long one, 408 for one that comes too slowly.
    """

    def __init__(self, app: ASGIApp, settings: ServingSettings, token: bytes | None) -> None:
        """Wrap `app`; anyone may ask when `token` is None."""
        self._app, self._token = app, token
        self._longest, self._seconds = settings.max_request_bytes, settings.receive_seconds
        self._buckets = Buckets(settings.requests_per_second) if settings.requests_per_second else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._refuse_caller(scope, headers) or _refuse_form(scope, headers)
        body = b""
        if refusal is None:
            body, refusal = await self._read(receive, headers)
        if refusal is None:
            await self._app(scope, _again(body, receive), send)
        else:
            await refusal(scope, receive, send)

    async def _read(self, receive: Receive, headers: Headers) -> tuple[bytes, JSONResponse | None]:
        try:
            body = await asyncio.wait_for(read_body(receive, headers, self._longest), self._seconds)
        except TimeoutError:
            sentence = f"The request did not come in within {self._seconds:g} s; send it faster."
            return b"", _refuse(408, sentence, {"Connection": "close"})
        if body is None:
            return b"", _refuse(413, f"The request is longer than {self._longest:,} bytes; send less.")
        return body, None

    def _refuse_caller(self, scope: Scope, headers: Headers) -> JSONResponse | None:
        path = scope["path"]
        if self._token and path != OPEN and not _bears(headers, self._token):
            sentence = "The token is missing or wrong; send the header `Authorization: Bearer <token>`."
            return _refuse(401, sentence, {"WWW-Authenticate": "Bearer"})
        wait = self._buckets.take(_address(scope)) if self._buckets and path not in UNLIMITED else 0
        if wait:
            seconds = math.ceil(wait)
            return _refuse(
                429, f"Too many requests; ask again in {seconds} s.", {"Retry-After": f"{seconds}"}
            )
        return None


class TokenBucket:
    """Lets through `rate` calls a second on average, and at once no more than come in a second."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Make the bucket, full."""
        self._rate, self._clock = rate, clock
        self._most = max(rate, 1.0)
        self._left, self._then = self._most, clock()

    def take(self) -> float:
        """Let a call through and return 0; or return after how many seconds the next one may come."""
        now = self._clock()
        self._left = min(self._left + (now - self._then) * self._rate, self._most)
        self._then = now
        if self._left < 1:
            return (1 - self._left) / self._rate
        self._left -= 1
        return 0


class Buckets:
    """A token bucket for each address that asks; the one that has asked longest ago is forgotten first."""

    def __init__(self, rate: float, most: int = MOST_ADDRESSES) -> None:
        """Make them, for `most` addresses at once."""
        self._rate, self._most = rate, most
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    def take(self, address: str) -> float:
        """Take from the bucket of an address; see `TokenBucket.take`."""
        bucket = self._buckets.setdefault(address, TokenBucket(self._rate))
        self._buckets.move_to_end(address)
        if len(self._buckets) > self._most:
            self._buckets.popitem(last=False)
        return bucket.take()


def read_token(file: Path) -> bytes:
    """Return the token in a file.

    Raises:
        InputError: the file cannot be read or is empty.
    """
    try:
        token = file.read_bytes().strip()
    except OSError as error:
        raise InputError(f"Cannot read the token in {file}: {error.strerror}.") from None
    if not token:
        raise InputError(f"The file {file} is empty; write the token into it.")
    return token


async def read_body(receive: Receive, headers: Headers, longest: int) -> bytes | None:
    """Return the body of a request, or None once it is known to be longer than `longest` bytes."""
    stated = headers.get("content-length", "0")
    if not stated.isdecimal() or int(stated) > longest:
        return None
    body, more = bytearray(), True
    while more:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > longest:
            return None
        more = message.get("more_body", False)
    return bytes(body)


def _address(scope: Scope) -> str:
    return str((scope.get("client") or ("unknown",))[0])


def _refuse_form(scope: Scope, headers: Headers) -> JSONResponse | None:
    if len(scope["raw_path"]) + len(scope["query_string"]) > LONGEST_ADDRESS:
        return _refuse(414, f"The address is longer than {LONGEST_ADDRESS:,} bytes; send less.")
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if scope["method"] == "POST" and kind != "application/json":
        return _refuse(415, "The body is not said to be JSON; send it as `Content-Type: application/json`.")
    return None


def _bears(headers: Headers, token: bytes) -> bool:
    kind, _, given = headers.get("authorization", "").partition(" ")
    return kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode("latin-1"), token)


def _refuse(status: int, sentence: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"detail": sentence}, status, headers)


def _again(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body that was read, then what comes after it."""
    given = False

    async def receive_again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again
