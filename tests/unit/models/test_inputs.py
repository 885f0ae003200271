import pytest
import torch

from watchrank.config import RankingSettings
from watchrank.models import inputs
from watchrank.models.inputs import InputLayer, id_features
from watchrank.models.ranking import RankingModel, ServedRanking
from watchrank.schema import RANKING_INPUTS


def features(batch=2, candidates=3):
    """Everything unknown."""
    dims = {spec.name: [candidates if size == -1 else size for size in spec.dims] for spec in RANKING_INPUTS}
    return {
        spec.name: torch.full((batch, *dims[spec.name]), -1)
        if spec.dtype == "int64"
        else torch.full((batch, *dims[spec.name]), float("nan"))
        for spec in RANKING_INPUTS
    }


def layer(absent=frozenset()):
    keys = {domain: torch.arange(10) for domain in id_features(absent)}
    return InputLayer(RankingSettings(), absent, keys)


def test_seconds_since_channel_watch_takes_the_last_watch_of_that_channel():
    x = features()
    x["now"][:] = 1000
    x["channel_id"][0] = torch.tensor([5, 6, -1])
    x["watched_channel_ids"][0, :4] = torch.tensor([5, 6, 5, 9])
    x["watched_times"][0, :4] = torch.tensor([900, 700, 100, 50])
    seconds = inputs.seconds_since_channel_watch(x)
    assert seconds[0, :2].tolist() == [100, 300]
    assert seconds[0, 2].isnan()
    assert seconds[1].isnan().all()
    assert inputs.channel_watches(x)[0].tolist() == [2, 1, 0]
    x["watched_video_ids"][0, :4] = torch.tensor([1, 2, 3, 4])
    assert inputs.watches(x).tolist() == [[4], [0]]
    assert inputs.channel_share(x)[0].tolist() == [0.5, 0.25, 0]
    assert inputs.channel_share(x)[1].isnan().all()


def test_previous_impressions_counts_repeats():
    x = features()
    x["video_id"][0] = torch.tensor([4, 8, 3])
    x["impression_video_ids"][0, :4] = torch.tensor([8, 4, 8, 1])
    assert inputs.previous_impressions(x)[0].tolist() == [1, 2, 0]


def test_mean_watched_seconds_and_same_language_know_missing():
    x = features()
    x["watched_video_ids"][0, :2] = torch.tensor([1, 2])
    x["watched_seconds"][0, :2] = torch.tensor([10.0, 30.0])
    assert inputs.mean_watched_seconds(x)[0].item() == 20
    assert inputs.mean_watched_seconds(x)[1].isnan()
    x["user_language"][0] = 7
    x["video_language"][0] = torch.tensor([7, 8, -1])
    same = inputs.same_language(x)
    assert same[0, :2].tolist() == [1, 0]
    assert same[0, 2].isnan()
    assert same[1].isnan().all()


def test_a_rate_of_few_impressions_is_drawn_to_the_overall_rate():
    x = features()
    x["video_watch_seconds_7d"] = torch.tensor([[0.0, 300.0, 0.0], [900.0, 0.0, 0.0]])
    x["video_impressions_7d"] = torch.tensor([[0, 30, 10], [80, 0, 0]])
    inputs_layer = layer()
    inputs_layer.fit(x)
    place = len(inputs_layer.continuous_names) + list(inputs.RATES).index("video_watch_rate_7d")
    overall = 1200 / 120
    found = inputs_layer.continuous(x)[0, :, place]
    torch.testing.assert_close(found, torch.tensor([overall, (300 + 20 * overall) / 50, 20 * overall / 30]))


def test_ids_of_one_domain_share_one_table():
    names = {name for name, _ in layer().named_parameters()}
    assert names == {f"embeddings.{domain}.table.weight" for domain in inputs.ID_DOMAINS}


def test_absent_columns_drop_their_features():
    absent = frozenset({"user_language", "video_language", "age"})
    small = layer(absent)
    assert not absent & small.input_names
    assert "language" not in small.id_names
    assert "same_language" not in small.continuous_names
    x = {name: value for name, value in features().items() if name not in absent}
    assert small(x).shape == (2, 3, small.width)


def test_a_candidate_is_scored_alike_alone_and_among_others():
    torch.manual_seed(0)
    model = RankingModel(layer(), RankingSettings()).eval()
    x = features()
    x["video_id"] = torch.tensor([[1, 2, 3], [4, 5, 6]])
    x["watched_video_ids"][:, :2] = torch.tensor([[1, 2], [7, 8]])
    together = model(x)
    one = {s.name: x[s.name][1:, 2:] if s.dims == (-1,) else x[s.name][1:] for s in RANKING_INPUTS}
    torch.testing.assert_close(model(one)[0, 0], together[1, 2])


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 1e30, -1e30])
def test_the_served_head_is_finite_and_bounded(value):
    settings = RankingSettings(max_watch_seconds=3600)
    model = RankingModel(layer(), settings)
    torch.nn.init.constant_(model.towers.logit.bias, 500.0)
    x = {n: torch.full_like(v, value) if v.is_floating_point() else v for n, v in features().items()}
    (answer,) = ServedRanking(model.eval())(x)
    torch.testing.assert_close(answer, torch.full_like(answer, 3600.0))
