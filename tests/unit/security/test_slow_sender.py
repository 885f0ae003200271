"""A sender that stops half-way is let go, and holds up nobody else."""

import socket
import threading
import time

import pytest
import uvicorn
from starlette.responses import PlainTextResponse

from watchrank.config import ServingSettings
from watchrank.serving.guard import Guard

HEAD = (
    b"POST /recommend HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
)


async def echo(scope, receive, send):
    message = await receive()
    await PlainTextResponse(message["body"].decode())(scope, receive, send)


@pytest.fixture
def port():
    app = Guard(echo, ServingSettings(receive_seconds=0.3), None)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join()


def everything(sender):
    """Read until the server closes the connection."""
    parts = []
    while part := sender.recv(4_096):
        parts.append(part)
    return b"".join(parts).decode()


def test_a_body_that_does_not_come_is_refused_and_its_connection_closed(port):
    with socket.create_connection(("127.0.0.1", port), timeout=30) as slow:
        slow.sendall(HEAD + b"half")
        with socket.create_connection(("127.0.0.1", port), timeout=30) as fast:
            fast.sendall(HEAD.replace(b"Host", b"Connection: close\r\nHost") + b"all of it")
            assert everything(fast).endswith("all of it")
        told = everything(slow)
    assert told.startswith("HTTP/1.1 408 ")
    assert "did not come in within 0.3 s" in told
