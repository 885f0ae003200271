"""Following a release store: what runs beside each Triton, so that all of them serve the release it names."""

import logging
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from tritonclient.utils import InferenceServerException

from watchrank.config import DeploymentSettings
from watchrank.deployment import model_repository
from watchrank.deployment.deploy import Deployed, deploy, serving
from watchrank.deployment.release_store import ReleaseStore
from watchrank.errors import InputError, WatchrankError
from watchrank.storage import locked

_FAILURES = (WatchrankError, InferenceServerException, OSError)
_LONGEST_WAIT = 64
"""In intervals: how long a release that was refused again and again waits for the next try."""

log = logging.getLogger(__name__)


def follow_once(
    store: ReleaseStore, pulled: Path, repository: Path, settings: DeploymentSettings
) -> Deployed | None:
    """Let the local Triton serve the release that the store names; return None when it does already.

    Args:
        store: the release store.
        pulled: folder for the releases that are fetched, of this Triton alone: those that are no longer in
            the model repository are removed.
        repository: the model repository of the local Triton.
        settings: where it listens, and how many releases to keep.

    Raises:
        InputError: the store names no release, or one that it does not hold.
        DeploymentError: the store or Triton cannot be reached, or the release is damaged or answers
            wrongly; the one of before serves on.
    """
    number = _named(store)
    if _serves(number, store, settings):
        return None
    return _take_up(number, store, pulled, repository, settings)


def follow(
    store: ReleaseStore,
    pulled: Path,
    repository: Path,
    settings: DeploymentSettings,
    interval: float,
    stop: Event,
) -> None:
    """Look every `interval` seconds which release the store names, and serve it, until `stop` is set.

    What fails is logged and tried again; the release of before serves on. A release that was refused waits
    twice as long each time, up to 64 intervals; when the store names another one, that is tried at once.
    The other arguments are those of `follow_once`.
    """
    refused = _Refused(interval=interval)
    while True:
        try:
            number = _named(store)
            if not _serves(number, store, settings) and not refused.waits(number):
                refused.add(number)
                _take_up(number, store, pulled, repository, settings)
                log.info("Release %d serves.", number)
                refused = _Refused(interval=interval)
        except _FAILURES as error:
            log.warning("%s", error)
        if stop.wait(interval):
            return


@dataclass(kw_only=True)
class _Refused:
    """The release that was tried last, how often, and when it may be tried again."""

    interval: float
    number: int | None = None
    tries: int = 0
    again: float = 0.0

    def waits(self, number: int) -> bool:
        return number == self.number and time.monotonic() < self.again

    def add(self, number: int) -> None:
        self.tries = self.tries + 1 if number == self.number else 1
        self.number = number
        self.again = time.monotonic() + self.interval * min(2**self.tries, _LONGEST_WAIT)


def _named(store: ReleaseStore) -> int:
    number = store.serving()
    if number is None:
        raise InputError(f"{store.url} names no release to serve; push one with `watchrank push --store`.")
    return number


def _serves(number: int, store: ReleaseStore, settings: DeploymentSettings) -> bool:
    return serving(store.manifest(number)["endpoints"], settings) == number


def _take_up(
    number: int, store: ReleaseStore, pulled: Path, repository: Path, settings: DeploymentSettings
) -> Deployed:
    try:
        return deploy(store.pull(number, pulled), repository, settings)
    finally:
        _forget(pulled, {number, *model_repository.releases(repository)})


def _forget(pulled: Path, kept: set[int]) -> None:
    """Remove the releases that are not to be kept, and what killed pulls left."""
    number = "[0-9]" * 6
    with locked(pulled):
        for folder in [*pulled.glob(number), *pulled.glob(f".{number}.*")]:
            if folder.name not in {f"{each:06d}" for each in kept}:
                shutil.rmtree(folder)
