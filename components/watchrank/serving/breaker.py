"""Leaving alone for a while what has failed, so that requests do not wait for it one after the other."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from watchrank.errors import DeploymentError

logger = logging.getLogger(__name__)


class Breaker:
    """A circuit breaker: after a failure calls fail at once, but for one a `retry_seconds`.

    It closes when one succeeds. For one event loop. The first failure in a row and the recovery are logged.
    """

    def __init__(self, name: str, retry_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Make it, closed; `name` is that of the part in the log."""
        self._name, self._retry_seconds, self._clock = name, retry_seconds, clock
        self._again = 0.0
        self._failure: str | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Note whether the block fails with a DeploymentError.

        Raises:
            DeploymentError: the part is left alone; the sentence is that of its last failure.
        """
        if self._failure is not None:
            now = self._clock()
            if now < self._again:
                raise DeploymentError(self._failure)
            self._again = now + self._retry_seconds
        try:
            yield
        except DeploymentError as error:
            if self._failure is None:
                logger.warning("%s fails: %s", self._name, error)
            self._failure = str(error)
            self._again = self._clock() + self._retry_seconds
            raise
        if self._failure is not None:
            logger.warning("%s answers again.", self._name)
        self._failure = None
