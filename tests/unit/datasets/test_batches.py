import numpy as np
import pytest
import torch

from watchrank.datasets.batches import RankingBatches, ResampledBatches, Share
from watchrank.datasets.ranking import RankingDataset, Split


def batches(prepared, **options):
    split = RankingDataset.open(prepared.place.dataset).split("train")
    return split, RankingBatches(split, {"video_id", "user_language", "watched_video_ids"}, 1_000, **options)


def test_an_epoch_holds_every_impression_once_with_its_own_request(prepared):
    split, loader = batches(prepared, seed=3)
    parts = list(loader.epoch(1))
    assert len(parts) == len(loader)
    assert loader.candidates == 8, "the simulator's slates are whole"
    assert sum(part.impressions for part in parts) == loader.rows
    shown = torch.cat([part.shown for part in parts]).numpy() > 0
    ids = torch.cat([part.features["video_id"] for part in parts]).numpy()[shown]
    language = torch.cat([part.features["user_language"] for part in parts]).expand(-1, 8).numpy()[shown]
    seconds = torch.cat([part.labels["watch_seconds"] for part in parts]).numpy()[shown]
    request = split.impressions["request"]
    expected = np.column_stack(
        [
            split.impressions["video_id"],
            split.requests["user_language"][request],
            split.impressions["watch_seconds"],
        ]
    )
    found = np.column_stack([ids, language, seconds])
    assert np.array_equal(
        np.unique(found, axis=0, return_counts=True)[1], np.unique(expected, axis=0, return_counts=True)[1]
    )
    assert np.array_equal(np.unique(found, axis=0), np.unique(expected, axis=0))
    assert parts[0].features["watched_video_ids"].shape == (len(parts[0].shown), 50)


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
    ids = [part.features["video_id"][part.shown > 0] for part in loader.epoch()]
    assert np.array_equal(torch.cat(ids).numpy(), split.impressions["video_id"])


def of_requests(counts, **options):
    """Batches of requests with so many impressions each; an impression's video id is its index."""
    request = np.repeat(np.arange(len(counts)), counts)
    rows = len(request)
    impressions = {
        "request": request,
        "video_id": np.arange(rows),
        "clicked": np.ones(rows, dtype=bool),
        "watch_seconds": np.arange(rows, dtype=np.float32) + 1,
    }
    split = Split({"age": np.arange(len(counts), dtype=np.float32)}, impressions)
    return RankingBatches(split, {"age", "video_id"}, 8, block=4, **options)


@pytest.mark.parametrize(
    ("counts", "candidates"),
    [
        ([1] * 20, 1),
        ([4] * 5, 4),
        ([1] * 18 + [2], 1),
        ([1, 4, 4, 4, 4, 4], 2),
        ([4] * 40 + [3], 4),
        ([9, 9], 3),
    ],
)
def test_a_row_holds_as_many_impressions_as_leave_hardly_a_place_empty(counts, candidates):
    loader = of_requests(counts)
    assert loader.candidates == candidates
    for seed in (None, 1):
        parts = list(of_requests(counts, seed=seed).epoch())
        assert len(parts) == len(loader)
        ids = np.concatenate([part.features["video_id"][part.shown > 0] for part in parts])
        ages = [part.features["age"].expand(part.shown.shape)[part.shown > 0] for part in parts]
        seconds = np.concatenate([part.labels["watch_seconds"][part.shown > 0] for part in parts])
        assert sorted(ids) == list(range(sum(counts)))
        assert np.array_equal(np.concatenate(ages), np.repeat(np.arange(len(counts)), counts)[ids])
        assert np.array_equal(seconds, ids + 1)
        assert all(part.impressions <= 8 for part in parts)
        assert all((part.labels["watch_seconds"][part.shown == 0] == 0).all() for part in parts)


def test_processes_share_every_batch():
    counts = [4] * 9
    whole = list(of_requests(counts, seed=5).epoch(2))
    shares = [list(of_requests(counts, seed=5, share=Share(process, 2)).epoch(2)) for process in (0, 1)]
    for batch, *parts in zip(whole, *shares, strict=True):
        found = torch.cat([part.features["video_id"].flatten() for part in parts])
        assert sorted(found.tolist()) == sorted(batch.features["video_id"].flatten().tolist())
    assert shares[1][-1].impressions == 0, (
        "the last batch has one block: nothing is left for the second process"
    )


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
