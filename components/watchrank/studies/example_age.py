"""Popularity over the days since upload: figure 4 of Covington et al. 2016.

The example age is the time from an example to the end of the training window. So it says *when* the
question was asked, and a video's days since upload are the difference of that moment and its upload. The
window is cut into slots of three hours. For each video that was uploaded within the window and for each slot
there are the video's share of the slot's training examples, and the softmax probability that a model gives
to the video at that moment, its example age set to the slot's middle, as a mean over users:

- "of the moment": up to `USERS` of the slot's own training examples, with the histories of that time. Were
  the model calibrated at every moment, this would be the examples' share. A history has recent videos in it
  and so tells the time too, even to a model without the example age. Both models learned from these
  very examples, so that they know them a little too well.
- "of any time": the same `USERS` training examples, drawn from the whole window, in every slot. Only the
  example age moves, so this is its effect alone; a model without it answers one average for all moments.

What is plotted at x is the mean over all pairs of a video and a slot that ends x to x + 1 days after the
upload; below 0 the video was not there yet. Each video is seen at days of its own, from the window's start to
its end: far from the upload few are, and a day is left out that less than `LEAST_SEEN` of them are seen at.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from watchrank.datasets.candidates import CandidateDataset
from watchrank.evaluation.retrieval import positions
from watchrank.training.candidate_generation import CandidateBatches
from watchrank.training.softmax import SoftmaxLoss

DAY_SECONDS = 86_400
SLOT_SECONDS = 3 * 3_600
USERS = 200
MOST_VIDEOS = 2_000
LEAST_SEEN = 0.25


@dataclass(frozen=True)
class Timeline:
    """The videos [V] uploaded within the training window, the slots [S] that have examples, the examples [E].

    Of more than `MOST_VIDEOS` videos these are the ones with the most examples.
    """

    video_ids: np.ndarray
    upload_seconds: np.ndarray
    slot_ages: np.ndarray
    """Example age of each slot's middle [S], in seconds, ascending."""
    end_seconds: int
    slot_of: np.ndarray
    """The slot of each training example [E]."""
    labels: np.ndarray
    """The video of each training example [E]."""

    @classmethod
    def of(cls, data: CandidateDataset) -> "Timeline | None":
        """Lay out the training window of a dataset; None without videos known to be uploaded within it."""
        train, videos, end = data.split("train"), data.videos, data.manifest["end_seconds"]
        if "upload_time" in data.absent_features or not len(train["user_id"]):
            return None
        ages = end - train["now"]
        slots, slot_of = np.unique(ages // SLOT_SECONDS, return_inverse=True)
        new = (videos["upload_time"] >= end - ages.max(initial=0)) & (videos["upload_time"] <= end)
        if not new.any():
            return None
        place = positions(videos["video_id"], train["video_id"])
        examples = np.bincount(place[place >= 0], minlength=len(new))
        most = np.argsort(-examples[new], kind="stable")[:MOST_VIDEOS]
        chosen = np.sort(np.flatnonzero(new)[most])
        return cls(
            videos["video_id"][chosen],
            videos["upload_time"][chosen],
            (slots + 0.5) * SLOT_SECONDS,
            end,
            slot_of,
            train["video_id"],
        )

    @property
    def days(self) -> np.ndarray:
        """Whole days from each video's upload to each slot's end [V, S]; negative before the upload."""
        ends = self.end_seconds - self.slot_ages + SLOT_SECONDS / 2
        found: np.ndarray = (ends - self.upload_seconds[:, None]) // DAY_SECONDS
        return found.astype(np.int64)

    def shares(self) -> np.ndarray:
        """Return each video's share of each slot's training examples [V, S]."""
        slots, known = len(self.slot_ages), np.isin(self.labels, self.video_ids)
        cell = np.searchsorted(self.video_ids, self.labels[known]) * slots + self.slot_of[known]
        counts = np.bincount(cell, minlength=len(self.video_ids) * slots).reshape(-1, slots)
        shares: np.ndarray = counts / np.bincount(self.slot_of, minlength=slots)
        return shares

    def users_of_the_moment(self) -> list[np.ndarray]:
        """Return up to `USERS` training examples of each slot, by index."""
        draw = np.random.default_rng(0)
        of_slot = [np.flatnonzero(self.slot_of == slot) for slot in range(len(self.slot_ages))]
        return [draw.choice(rows, min(USERS, len(rows)), replace=False) for rows in of_slot]

    def users_of_any_time(self) -> list[np.ndarray]:
        """Return `USERS` training examples of the whole window, by index, the same ones for each slot."""
        rows = np.random.default_rng(0).choice(len(self.labels), min(USERS, len(self.labels)), replace=False)
        return [rows] * len(self.slot_ages)


def by_day(days: np.ndarray, values: np.ndarray) -> dict[int, float]:
    """Return the mean value of each day since upload that enough videos are seen at.

    Args:
        days: whole days since upload [V, S].
        values: of the same videos and slots [V, S].

    Returns:
        The mean over the pairs of each day, for the days that `LEAST_SEEN` of the videos have.
    """
    first = days.min()
    place = (days - first).ravel()
    pairs = np.bincount(place)
    means = np.bincount(place, weights=values.ravel()) / np.maximum(pairs, 1)
    seen = [np.any(days == first + day, axis=1).mean() for day in range(len(pairs))]
    return {int(first) + day: float(means[day]) for day in range(len(pairs)) if seen[day] >= LEAST_SEEN}


@torch.no_grad()
def probabilities(
    task: SoftmaxLoss, data: CandidateDataset, line: Timeline, users: Sequence[np.ndarray]
) -> np.ndarray:
    """Return the mean probability that a model gives to each video at each slot [V, S].

    Args:
        task: the trained model with its softmax, on the CPU.
        data: what it was trained on.
        line: the videos and slots; a video without a class has the probability 0.
        users: training examples to average over, by index, one array a slot.
    """
    task.eval()
    batches = CandidateBatches(data.split("train"), task.model.tower.names, 1)
    rows = task.model.vocabulary(torch.from_numpy(line.video_ids))
    found = np.empty((len(line.video_ids), len(line.slot_ages)))
    for slot, age in enumerate(line.slot_ages):
        x = batches.read(users[slot]).features
        if "example_age" in x:
            x["example_age"] = torch.full_like(x["example_age"], float(age))
        mean = task.scores(task.model(x)).softmax(1).mean(0)  # [N]
        found[:, slot] = torch.cat([torch.zeros(1), mean])[rows].numpy()
    return found
