import logging

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from watchrank.config import CLICK, WATCH_TIME, CandidateSettings, RankingSettings, TaskSettings
from watchrank.datasets.batches import RankingBatches
from watchrank.datasets.ranking import RankingDataset
from watchrank.errors import InputError
from watchrank.models.calibration import Calibration
from watchrank.models.candidate_generation import CandidateModel, UserTower
from watchrank.models.inputs import InputLayer, id_features
from watchrank.models.ranking import RankingModel
from watchrank.models.text.bag_of_words import BagOfWords
from watchrank.models.text.cnn import Cnn
from watchrank.models.text.side_fields import SideFields
from watchrank.models.text.two_towers import DocumentTower, QueryTower, TextMatch
from watchrank.training.ranking import load_model, new_model, train_ranking
from watchrank.training.warm_start import (
    candidate_axes,
    origin,
    ranking_axes,
    start_from,
    text_axes,
)

LIKE = TaskSettings(name="like", kind="binary", label="liked")
SETTINGS = RankingSettings(hidden="256", quantiles=4, video_dim=3, channel_dim=2, category_dim=2)
KEYS = torch.tensor([2, 5, 9])


def ranker(seed, keys=KEYS, absent=(), **settings):
    torch.manual_seed(seed)
    chosen, absent = SETTINGS.model_copy(update=settings), frozenset(absent)
    inputs = InputLayer(chosen, absent, dict.fromkeys(id_features(absent), keys))
    return RankingModel(inputs, chosen)


def started(model, champion, axes=ranking_axes, **kwargs):
    """Start the model; return its parameters and what they were before."""
    before = {name: value.clone() for name, value in model.named_parameters()}
    report = start_from(model, champion, axes, **kwargs)
    return dict(model.named_parameters()), before, report.shares


def test_on_the_same_data_the_new_model_answers_as_the_champion_does(trained):
    data, champion = RankingDataset.open(trained.place.dataset), load_model(trained.place.model)
    model = new_model(data, trained.config.ranking).eval()
    _, _, shares = started(model, champion)
    assert set(shares.values()) == {1.0}
    x = RankingBatches(data.split("test"), model.inputs.input_names, 64).read(np.arange(64)).features
    assert not torch.equal(model(x), champion(x)), "the calibration is the champion's own"
    champion.calibrations[0] = Calibration()
    assert torch.equal(model(x), champion(x))


def test_ids_of_both_vocabularies_keep_their_rows_new_ones_start_afresh_old_ones_go():
    champion, model = ranker(0), ranker(1, keys=torch.tensor([1, 5, 7, 9]))
    found, before, shares = started(model, champion)
    name = "inputs.embeddings.video.table.weight"
    its = champion.get_parameter(name)
    expected = torch.stack([its[0], before[name][1], its[2], before[name][3], its[3]])
    assert torch.equal(found[name], expected)
    assert shares[name] == 3 / 5


def test_inputs_keep_their_columns_by_name_and_not_by_place():
    """One model lacks the age, the other the time since signup: as many columns, of other things."""
    champion, model = ranker(0, absent=["age"]), ranker(1, absent=["signup_time"])
    assert model.inputs.width == champion.inputs.width == len(model.inputs.columns)
    found, before, _ = started(model, champion)
    name = "structure.bottom.0.weight"
    its = dict(zip(champion.inputs.columns, champion.get_parameter(name).T, strict=True))
    own = dict(zip(model.inputs.columns, before[name].T, strict=True))
    fresh = own.keys() - its.keys()
    assert fresh == {f"{kind} of age" for kind in ("quantile", "square", "root", "missing")}
    for column, values in zip(model.inputs.columns, found[name].T, strict=True):
        assert torch.equal(values, own[column] if column in fresh else its[column]), column


def test_the_columns_of_the_inputs_are_named_as_they_come():
    model = ranker(0, normalisation="none")
    for place, domain in enumerate(model.inputs.embeddings):
        torch.nn.init.constant_(model.inputs.embeddings[domain].table.weight, 100.0 + place)
    x = {name: torch.zeros(1, 1, dtype=torch.int64) for name in model.inputs.input_names}
    x |= {"duration_seconds": torch.full((1, 1), 7.0), "age": torch.full((1, 1), torch.nan)}
    x |= {
        name: torch.zeros(1, 4, dtype=torch.int64)
        for name in x
        if name.startswith(("watched", "impression_v"))
    }
    row = dict(zip(model.inputs.columns, model.eval().inputs(x).flatten().tolist(), strict=True))
    assert row["value of duration_seconds"] == 7
    assert (row["value of age"], row["missing of age"], row["missing of duration_seconds"]) == (0, 1, 0)
    for place, (domain, names) in enumerate(model.inputs.id_names.items()):
        assert {row[f"{name}, 1 of 2"] for name in names if domain != "video"} <= {100 + place}
    assert row["video_id, 2 of 3"] == row["watched_video_ids, 0 of 3"] == 100


@pytest.mark.parametrize("kind", ["share_bottom", "omoe", "mmoe"])
def test_tasks_are_known_by_name_kind_and_label(kind):
    champion = ranker(0, model=kind, tasks=(CLICK, LIKE, WATCH_TIME), position_bias=True)
    other = LIKE.model_copy(update={"label": "followed"})
    model = ranker(1, model=kind, tasks=(WATCH_TIME, other, CLICK), position_bias=True)
    found, before, _ = started(model, champion)
    names = [name for name in found if name.startswith("towers")]
    assert len(names) == 4
    for name in [*names, "position.bias.weight"]:
        its = champion.get_parameter(name)
        assert torch.equal(found[name], torch.stack([its[2], before[name][1], its[0]])), name
    if kind != "share_bottom":
        gates, its, own = (
            weights["structure.gate.weight"].unflatten(0, (-1, 4))
            for weights in (found, dict(champion.named_parameters()), before)
        )
        expected = its if kind == "omoe" else torch.stack([its[2], own[1], its[0]])
        assert torch.equal(gates, expected)


@pytest.mark.parametrize(
    ("other", "fresh"),
    [
        ({"hidden": "512"}, {"structure.bottom.0.weight", "structure.bottom.0.bias", "towers.logit.weight"}),
        ({"hidden": "none"}, {"towers.logit.weight"}),
        ({"powers": False}, set()),
        ({"video_dim": 4}, {"inputs.embeddings.video.table.weight"}),
    ],
)
def test_of_another_architecture_comes_what_fits_and_the_rest_is_told_in_a_line(other, fresh, caplog):
    with caplog.at_level(logging.INFO, logger="watchrank"):
        _, _, shares = started(ranker(1, **other), ranker(0))
    assert {name for name, share in shares.items() if share == 0} == fresh
    assert shares["inputs.embeddings.channel.table.weight"] == 1
    (line,) = caplog.messages
    partly = [name for name, share in shares.items() if share < 1]
    assert f"{len(shares) - len(partly)} of {len(shares)} parameters were taken over whole" in line
    assert all(name in line for name in partly)


def test_experts_of_another_number_and_width_start_afresh():
    champion = ranker(0, model="mmoe", experts=4, expert_hidden=(6,))
    found, before, shares = started(ranker(1, model="mmoe", experts=3, expert_hidden=(8,)), champion)
    assert found["structure.first.weight"].shape == champion.get_parameter("structure.first.weight").shape
    for name in ("structure.first.weight", "structure.first.bias", "structure.gate.weight"):
        assert torch.equal(found[name], before[name])
        assert shares[name] == 0


def test_a_ranker_of_watch_time_gives_its_tower_to_the_task_of_that_name():
    found, before, _ = started(
        ranker(1, model="share_bottom", tasks=(CLICK, WATCH_TIME), tower_hidden=()), champion := ranker(0)
    )
    assert torch.equal(found["towers.logit.weight"][1], champion.get_parameter("towers.logit.weight")[0])
    assert torch.equal(found["towers.logit.weight"][0], before["towers.logit.weight"][0])


def tower(seed, keys=KEYS, absent=(), **settings):
    torch.manual_seed(seed)
    chosen = CandidateSettings(dim=4, feature_dim=2, depth=1, **settings)
    domains = ("video", "token", "language", "country", "device", "gender", "logged_in")
    return CandidateModel(UserTower(chosen, frozenset(absent), dict.fromkeys(domains, keys), 9.0), chosen)


@pytest.mark.parametrize("tied", [True, False])
def test_the_videos_vectors_and_the_tower_of_candidate_generation_go_by_id_and_by_feature(tied):
    champion = tower(0, tied=tied)
    model = tower(1, keys=torch.tensor([5, 6]), absent=["user_language"], tied=tied, recent=0)
    found, before, shares = started(model, champion, candidate_axes)
    assert torch.equal(model.vectors[0], champion.vectors[1])
    assert torch.equal(model.vectors[1], before["weights.weight" if not tied else next(iter(before))][2])
    order = ["video", "token", "language", "country", "device", "gender", "logged_in", "recent", "age"]
    named = [column.partition(",")[0] for column in champion.tower.columns]
    assert [*dict.fromkeys(named)] == [*order, "age missing", "example age", "square", "root"]
    assert len(model.tower.columns) == model.tower.layers[0].in_features
    its = dict(zip(champion.tower.columns, champion.tower.layers[0].weight.T, strict=True))
    for column, values in zip(model.tower.columns, model.tower.layers[0].weight.T, strict=True):
        assert torch.equal(values, its[column]), column
    assert shares["tower.layers.0.weight"] == 1
    assert found.keys() == shares.keys()


def matcher(seed, kind, keys, fields):
    torch.manual_seed(seed)
    text = kind(torch.tensor(keys), dim=4)
    of_fields = {name: torch.tensor([3, 4]) for name in fields}
    side = SideFields(of_fields, dim=4) if fields else None
    return TextMatch(QueryTower(text), DocumentTower(text, side))


def test_the_rows_of_ngrams_go_by_ngram_and_place_in_the_window():
    champion = matcher(0, Cnn, [10, 20, 30], ["channel_id", "category"])
    model = matcher(1, Cnn, [20, 40], ["category"])
    found, before, shares = started(model, champion, text_axes)
    name = "query.text.bags.table.weight"
    its, own = champion.get_parameter(name), before[name]
    expected = [its[0], its[2], own[2], its[5], own[4], its[8], own[6]]
    assert torch.equal(found[name], torch.stack(expected))
    assert model.document.text is model.query.text
    assert shares["document.fields.layers.0.weight"] == 1
    first, its_first = (each.document.fields.layers[0].weight for each in (model, champion))
    assert torch.equal(first, its_first[:, 32:])


def test_another_text_tower_takes_the_rows_of_the_word_itself():
    champion, model = matcher(0, Cnn, [10, 20], []), matcher(1, BagOfWords, [20, 30], [])
    found, before, _ = started(model, champion, text_axes)
    name = "query.text.bags.table.weight"
    its = champion.get_parameter(name)
    assert torch.equal(found[name], torch.stack([its[0], its[4], before[name][2]]))


def test_a_warm_run_is_repeatable_better_at_once_and_says_what_it_started_from(trained, tmp_path):
    place, config = trained.place, trained.config
    training = config.training.model_copy(update={"epochs": 1})
    curves = [
        train_ranking(place.dataset, tmp_path / name, config.ranking, training, start)
        for name, start in {"cold": None, "warm": place.model, "again": place.model}.items()
    ]
    losses = [curve[0].validation_loss for curve in curves]
    assert losses[1] < losses[0]
    weights = [load_file(tmp_path / name / "weights.safetensors") for name in ("warm", "again")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert (
        origin("2026-01-31", tmp_path / "warm")["started_from"]
        != origin("2026-01-31", place.model)["started_from"]
    )


def test_a_run_from_another_champion_does_not_resume(trained, tmp_path, monkeypatch):
    place, config = trained.place, trained.config
    keys = []
    monkeypatch.setattr("watchrank.training.ranking.Fit", lambda *_, key, **__: keys.append(key) or Nothing())
    for start in (None, place.model, place.model):
        train_ranking(place.dataset, tmp_path / "m", config.ranking, config.training, start)
    assert keys[0] != keys[1] == keys[2]


class Nothing:
    def run(self):
        return []


def test_a_champion_that_knows_the_future_is_refused(trained):
    last = RankingDataset.open(trained.place.dataset).manifest["splits"]["train"]["until"]
    assert origin(last, trained.place.model)["learned_until"] == last
    with pytest.raises(
        InputError, match=f"log up to {last}, and this run learns up to 2025-12-31; start from"
    ):
        origin("2025-12-31", trained.place.model)
    with pytest.raises(InputError, match="Cannot read the model"):
        origin(last, trained.place.model / "nothing")
