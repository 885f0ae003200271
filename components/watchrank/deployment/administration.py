"""The key of a Triton server's administration: loading and unloading models is not open to callers."""

import secrets
from pathlib import Path

from watchrank.config import DeploymentSettings
from watchrank.errors import InputError

HEADER = "watchrank-admin"
"""Name of the header that brings the key."""

RESTRICTED = ("model-repository", "shared-memory", "trace", "logging")
"""Groups of Triton's protocols that change the server or its machine."""


def write_key(path: Path) -> None:
    """Write a new key to a file that only its owner can read."""
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(32), encoding="utf-8")


def admin_headers(settings: DeploymentSettings) -> dict[str, str] | None:
    """Return what a gRPC call of the administration must bring; None when the server wants no key.

    Raises:
        InputError: the file of the key cannot be read.
    """
    if settings.admin_key_file is None:
        return None
    try:
        return {f"triton-grpc-protocol-{HEADER}": settings.admin_key_file.read_text(encoding="utf-8").strip()}
    except OSError as error:
        raise InputError(f"Cannot read the key in deployment.admin_key_file: {error}.") from None


def restricted_options(path: Path) -> list[str]:
    """Return the options by which `tritonserver` asks for the key in a file."""
    key = path.read_text(encoding="utf-8").strip()
    groups = ",".join(RESTRICTED)
    return [
        f"--{option}={groups}:{HEADER}={key}"
        for option in ("grpc-restricted-protocol", "http-restricted-api")
    ]
