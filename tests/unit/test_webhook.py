import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from watchrank.errors import InputError
from watchrank.webhook import WebhookError, post


@pytest.fixture(params=[200, 403])
def hook(request):
    told = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            told.append((self.headers["Content-Type"], self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(request.param)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever).start()
    yield request.param, f"http://127.0.0.1:{server.server_port}/secret-part", told
    server.shutdown()
    server.server_close()


def test_a_webhook_is_told_in_json_and_its_refusal_is_an_error_without_its_address(hook):
    status, url, told = hook
    if status == 200:
        post(url, "the run failed", run="7")
    else:
        with pytest.raises(WebhookError, match="answered 403") as error:
            post(url, "the run failed", run="7")
        assert "secret-part" not in str(error.value)
    kind, body = told[0]
    assert kind == "application/json"
    assert json.loads(body) == {"text": "the run failed", "run": "7"}


def test_nobody_there():
    with pytest.raises(WebhookError, match="does not answer") as error:
        post("http://127.0.0.1:1/secret-part", "text")
    assert "secret-part" not in str(error.value)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/x", "hooks.example.com"])
def test_only_http(url):
    with pytest.raises(InputError, match="https://"):
        post(url, "text")
