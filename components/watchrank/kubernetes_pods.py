"""What the pods of every job have: the workspace's volume, secrets by reference, and no rights beyond.

Source: the level `restricted` of Kubernetes' Pod Security Standards, which the namespace enforces.
"""

from pathlib import Path
from typing import Any

from watchrank.config import PodSettings
from watchrank.errors import InputError

USER = 1_000
"""Of the images (infra/docker/Dockerfile), and the group that may write to volumes."""

RESTRICTED_POD = {
    "runAsNonRoot": True,
    "runAsUser": USER,
    "runAsGroup": USER,
    "fsGroup": USER,
    "seccompProfile": {"type": "RuntimeDefault"},
}
RESTRICTED_CONTAINER = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def secret_variables(settings: PodSettings) -> list[dict[str, Any]]:
    """Return the environment variables of a container that hold keys of Secrets."""
    return [
        {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}
        for secret, keys in settings.secrets.items()
        for key, variable in keys.items()
    ]


def workspace_volume(settings: PodSettings) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the volume of the workspace, and its mount in a container."""
    claim = {"claimName": settings.workspace_claim}
    mount = {"name": "workspace", "mountPath": str(settings.workspace_path)}
    return {"name": "workspace", "persistentVolumeClaim": claim}, mount


def require_shared(settings: PodSettings, section: str, *paths: Path | str) -> None:
    """Check that other pods have an image, and the folders that they shall work on.

    Raises:
        InputError: there is no image or claim, or a folder lies elsewhere; an address such as s3:// may.
    """
    for name in ("image", "workspace_claim"):
        if not getattr(settings, name):
            raise InputError(f"Work on other pods needs {section}.{name}. Set it.")
    for path in paths:
        if "://" not in str(path) and not Path(path).is_relative_to(settings.workspace_path):
            raise InputError(
                f"{path} is not on the volume that other pods share, {settings.workspace_path}. "
                f"Put it there, or correct {section}.workspace_path."
            )
