"""Tell a webhook, such as a chat's, that a run failed."""

import json
import os
import urllib.request
from urllib.parse import urlsplit

from watchrank.errors import InputError, WatchrankError

TIMEOUT_SECONDS = 30
VARIABLE = "WATCHRANK_WEBHOOK"
"""Where a pod has an address that is a secret; a parameter is for everyone to read who sees the run."""


class WebhookError(WatchrankError):
    """The webhook did not take the message."""


def address(given: str) -> str:
    """Return the address that is told: the given one, or else that of the environment; empty for nobody."""
    return given or os.environ.get(VARIABLE, "")


def post(url: str, text: str, **details: str) -> None:
    """Post `{"text": text, ...details}` as JSON: what Slack, Mattermost and Google Chat read.

    Raises:
        InputError: the address is none of HTTP.
        WebhookError: it did not answer, or with an error. The address is not named: it often is a secret.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise InputError("The webhook is no address of HTTP; give one that starts with https://.")
    body = json.dumps({"text": text, **details}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS):
            pass
    except (OSError, ValueError) as error:
        code = getattr(error, "code", None)
        reason = f"answered {code}" if code else f"does not answer ({type(error).__name__})"
        raise WebhookError(f"The webhook {reason}; check its address.") from None
