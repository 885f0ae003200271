"""Deploying through a release store: push, name, and wait until Triton itself says that it serves it.

What brings the release into Triton is `watchrank follow` beside it; this side needs neither Triton's disk nor
the key of its administration.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from watchrank.config import DeploymentSettings
from watchrank.deployment import model_repository
from watchrank.deployment.deploy import serving
from watchrank.deployment.release_store import ReleaseStore
from watchrank.errors import DeploymentError, WatchrankError

_INTERVAL = 0.5
"""Seconds from one question to Triton to the next."""


def serving_release(releases: Path, repository: model_repository.Location, store: str) -> Path | None:
    """Return the folder of the release that serves, the champion; None before the first.

    Args:
        releases: folder of all releases.
        repository: the model repository that Triton reads, a folder or s3://.
        store: the release store that Triton's side follows instead; empty for none.

    Raises:
        DeploymentError, InputError: see `champion`.
    """
    if store:
        return champion(ReleaseStore(store), releases)
    number = model_repository.serving(repository, "ranking")
    return None if number is None else releases / f"{number:06d}"


def champion(store: ReleaseStore, releases: Path) -> Path | None:
    """Return the folder of the release that a store names to serve, fetched and checked; None without one.

    Args:
        store: the release store.
        releases: folder of releases, to fetch it into.

    Raises:
        DeploymentError: the store cannot be used, the release is damaged there, or `releases` holds another
            one of its number.
        InputError: the store does not hold what it names.
    """
    number = store.serving()
    return None if number is None else store.pull(number, releases)


def roll_out(release: Path, store: ReleaseStore, settings: DeploymentSettings, timeout_seconds: float) -> int:
    """Push a release into a store and let it serve; return its number. See `switch`.

    Raises:
        InputError: `release` is no release.
        DeploymentError: it is damaged, the store holds another one of its number or cannot be used, or the
            release did not serve in time; what served before serves on.
    """
    number = store.push(release)
    switch(number, store, settings, timeout_seconds)
    return number


def switch(number: int, store: ReleaseStore, settings: DeploymentSettings, timeout_seconds: float) -> None:
    """Name a release of a store, wait until Triton serves it; an earlier one, too: that is a rollback.

    When it does not in time, the store names the former release again, unless someone has named another one
    meanwhile. Of several Tritons behind one address the one that happens to answer is asked.

    Args:
        number: of the release.
        store: the release store that Triton's side follows.
        settings: where Triton listens.
        timeout_seconds: for its side to look, fetch the release, load and test it.

    Raises:
        InputError: the store holds no such release.
        DeploymentError: the store cannot be used, or the release did not serve in time.
    """
    endpoints = store.manifest(number)["endpoints"]
    with _named(number, _former(number, endpoints, store, settings), store):
        deadline = time.monotonic() + timeout_seconds
        while (fault := _fault(number, endpoints, settings)) is not None:
            if time.monotonic() > deadline:
                raise DeploymentError(f"{fault} after {timeout_seconds:g} s")
            time.sleep(_INTERVAL)


def _fault(number: int, endpoints: list[str], settings: DeploymentSettings) -> str | None:
    """Return why the release cannot be said to serve, or None when it does."""
    try:
        found = serving(endpoints, settings)
    except DeploymentError as error:  # it may be starting
        return str(error).rstrip(".")
    if found == number:
        return None
    return f"Triton at {settings.grpc_url} serves {f'release {found}' if found else 'no whole release'}"


def _former(
    number: int, endpoints: list[str], store: ReleaseStore, settings: DeploymentSettings
) -> int | None:
    """Return what the store names, or what Triton serves when a run that was killed has named the release."""
    named = store.serving()
    if named != number:
        return named
    try:
        return serving(endpoints, settings) or number
    except DeploymentError:
        return number


@contextmanager
def _named(number: int, before: int | None, store: ReleaseStore) -> Iterator[None]:
    """Let a store name a release; when the block fails, let it name the one of before."""
    store.serve(number)
    try:
        yield
    except DeploymentError as error:
        outcome = _name_again(before, number, store)
        raise DeploymentError(
            f"Release {number} does not serve: {error}; {outcome}. See why in the log of `watchrank follow`."
        ) from error
    except BaseException:
        _name_again(before, number, store)
        raise


def _name_again(before: int | None, number: int, store: ReleaseStore) -> str:
    """Point a store back; return in words what it names now."""
    try:
        if store.serving() == number:
            store.serve(before)
        now = store.serving()
    except WatchrankError as error:
        return f"{store.url} may still name it ({str(error).rstrip('.')})"
    return f"{store.url} names {'no release' if now is None else f'release {now}'}"
