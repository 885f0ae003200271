"""The features of users from Feast's online store, read beside the event loop."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from watchrank.errors import DeploymentError
from watchrank.feature_store import newcomer_features, online_user_features
from watchrank.serving.breaker import Breaker
from watchrank.serving.question import Arrays, check_integers

if TYPE_CHECKING:
    from feast import FeatureStore

MOST_READERS = 16
"""Threads that read. A read that hangs keeps its thread until the store's socket times out."""

NOBODY = 0
"""The user whose features a check reads; whether there is such a user does not matter."""


class OnlineFeatures:
    """Reads users' features; a store that fails is left alone for a while."""

    def __init__(self, store: "FeatureStore", retry_seconds: float) -> None:
        """Read from `store`, opened by `feature_store.open_store` and materialised."""
        self.store = store
        self._threads = ThreadPoolExecutor(MOST_READERS, "online-features")
        self._breaker = Breaker("The online store", retry_seconds)

    async def read(self, user_ids: Sequence[int], seconds: float) -> Arrays:
        """Return the newest features of n users, each [n, *dims] as in `schema.USER_TENSORS`.

        Raises:
            InputError: an id is below 0 or above 64 bits.
            DeploymentError: the online store fails, does not answer within `seconds`, or has just failed.
        """
        check_integers("user_ids", user_ids)
        with self._breaker.watching():
            reading = asyncio.get_running_loop().run_in_executor(
                self._threads, online_user_features, self.store, user_ids
            )
            try:
                return await asyncio.wait_for(reading, seconds)
            except Exception as error:  # each of Feast's stores raises errors of its own
                raise DeploymentError(
                    f"The online store does not answer ({type(error).__name__}); "
                    "run `watchrank features`, or start the store."
                ) from error

    async def answers(self, seconds: float) -> bool:
        """Tell whether the store answers within so many seconds."""
        try:
            await self.read([NOBODY], seconds)
        except DeploymentError:
            return False
        return True

    def close(self) -> None:
        """Let the threads end; none is waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def is_known(features: Arrays) -> np.ndarray:
    """Tell of each user, [n], whether any feature, [n, *dims], differs from a newcomer's."""
    rows = len(next(iter(features.values())))
    known = np.zeros(rows, bool)
    for name, default in newcomer_features(1).items():
        differs = (features[name] != default) & ~(np.isnan(features[name]) & np.isnan(default))
        known |= differs.any(axis=1)
    return known
