"""Rolling back: an earlier release is deployed again, or named again to all that follow a store."""

from pathlib import Path

from watchrank.config import DeploymentSettings
from watchrank.deployment import model_repository
from watchrank.deployment.deploy import deploy, release_before
from watchrank.deployment.model_repository import Location
from watchrank.deployment.release_store import ReleaseStore
from watchrank.deployment.rollout import switch
from watchrank.errors import InputError
from watchrank.releases import release_numbers

ENDPOINT = "recommend"
"""The endpoint that every release has: it tells which release serves."""


def roll_back(
    releases: Path, repository: Location, store: str | None, number: int | None, settings: DeploymentSettings
) -> tuple[int | None, int]:
    """Let an earlier release answer again.

    Args:
        releases: folder of all releases.
        repository: the model repository that Triton reads, a folder or s3://.
        store: where Tritons follow releases, a folder or s3://; None tells Triton directly.
        number: of the release; None for the one before the one that serves.
        settings: where Triton listens.

    Returns:
        The release that served, and the one that serves now.

    Raises:
        InputError: there is no such release.
        DeploymentError: Triton refused it; what served serves on.
    """
    if store is not None:
        there = ReleaseStore(store)
        before, now = there.serving(), number or there.release_before()
        switch(now, there, settings, settings.rollout_seconds)
        return before, now
    before = model_repository.serving(repository, ENDPOINT)
    now = number or release_before(repository, ENDPOINT)
    if now not in release_numbers(releases):
        known = ", ".join(map(str, release_numbers(releases))) or "none"
        raise InputError(f"{releases} holds no release {now}. There are: {known}.")
    deploy(releases / f"{now:06d}", repository, settings)
    return before, now
