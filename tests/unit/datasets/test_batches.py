import numpy as np
import torch

from watchrank.datasets.batches import RankingBatches, ResampledBatches
from watchrank.datasets.ranking import RankingDataset


def batches(prepared, **options):
    split = RankingDataset.open(prepared.place.dataset).split("train")
    return split, RankingBatches(split, {"video_id", "user_language", "watched_video_ids"}, 1_000, **options)


def test_an_epoch_holds_every_impression_once_with_its_own_request(prepared):
    split, loader = batches(prepared, seed=3)
    parts = list(loader.epoch(1))
    assert len(parts) == len(loader)
    features = {
        name: torch.cat([part.features[name] for part in parts]).numpy() for name in parts[0].features
    }
    seconds = torch.cat([part.labels["watch_seconds"] for part in parts]).numpy()
    request = split.impressions["request"]
    expected = np.column_stack(
        [
            split.impressions["video_id"],
            split.requests["user_language"][request],
            split.impressions["watch_seconds"],
        ]
    )
    found = np.column_stack([features["video_id"], features["user_language"], seconds])
    assert np.array_equal(
        np.unique(found, axis=0, return_counts=True)[1], np.unique(expected, axis=0, return_counts=True)[1]
    )
    assert np.array_equal(np.unique(found, axis=0), np.unique(expected, axis=0))
    assert features["watched_video_ids"].shape == (len(request), 50)


def test_the_order_depends_on_seed_and_epoch_only_and_can_be_entered_in_the_middle(prepared):
    _, loader = batches(prepared, seed=3)
    first = [part.features["video_id"] for part in loader.epoch(0)]
    assert all(
        torch.equal(a, b)
        for a, b in zip(first, [p.features["video_id"] for p in loader.epoch(0)], strict=True)
    )
    assert not torch.equal(first[0], next(loader.epoch(1)).features["video_id"])
    skipped = [part.features["video_id"] for part in loader.epoch(0, skip=4)]
    assert all(torch.equal(a, b) for a, b in zip(first[4:], skipped, strict=True))


def test_without_a_seed_the_order_is_that_of_the_log(prepared):
    split, loader = batches(prepared)
    ids = torch.cat([part.features["video_id"] for part in loader.epoch()]).squeeze(1).numpy()
    assert np.array_equal(ids, split.impressions["video_id"])


def test_resampling_draws_each_impression_as_often_as_it_weighs(prepared):
    _, loader = batches(prepared)
    positive, negative = np.zeros(loader.rows), np.zeros(loader.rows)
    positive[7], negative[7], negative[11] = 6, 1, 3
    resampled = ResampledBatches(loader, positive, negative, seed=0)
    parts = list(resampled.epoch(0))
    assert len(parts) == len(resampled)
    ids = torch.cat([part.features["video_id"] for part in parts]).squeeze(1).numpy()
    as_positive = torch.cat([part.labels["clicked"] for part in parts]).squeeze(1).numpy()
    seventh, eleventh = (loader.read(np.array([row])).features["video_id"].item() for row in (7, 11))
    assert len(ids) == loader.rows
    assert abs(as_positive.mean() - 0.6) < 0.02
    assert set(ids[as_positive == 1]) == {seventh}
    assert set(ids) == {seventh, eleventh}
    assert torch.equal(parts[3].features["video_id"], next(resampled.epoch(0, skip=3)).features["video_id"])
