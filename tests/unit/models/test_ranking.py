import math

import pytest
import torch

from watchrank.config import RankingSettings, TaskSettings
from watchrank.errors import InputError
from watchrank.models.inputs import InputLayer, id_features
from watchrank.models.ranking import (
    POSITIONS,
    Answers,
    PositionTower,
    RankingModel,
    ServedRanking,
    served_outputs,
    weight_inputs,
)
from watchrank.schema import RANKING_INPUTS

TASKS = (
    TaskSettings(name="click", kind="binary", label="clicked"),
    TaskSettings(name="watch_time", kind="watch_time", label="watch_seconds"),
    TaskSettings(name="place", kind="regression", label="position"),
)


def ranker(**settings):
    torch.manual_seed(0)
    chosen = RankingSettings(**{"model": "mmoe", "tasks": TASKS} | settings)
    keys = {domain: torch.arange(10) for domain in id_features(frozenset())}
    return RankingModel(InputLayer(chosen, frozenset(), keys), chosen).eval()


def request(batch=2, candidates=3):
    x = {}
    for spec in RANKING_INPUTS:
        dims = (batch, *(candidates if size == -1 else size for size in spec.dims))
        x[spec.name] = torch.randint(0, 20, dims) if spec.dtype == "int64" else torch.rand(dims)
    return x


def with_weights(x, **weights):
    rows = len(x["now"])
    own = {spec.name: torch.full((rows, 1), math.nan) for spec in weight_inputs(TASKS)}
    return (
        x | own | {f"{task}_weight": torch.full((rows, 1), float(value)) for task, value in weights.items()}
    )


def test_answers_are_probabilities_seconds_and_means():
    model, x = ranker(), request()
    model.scale[2] = 4.0
    logits, answers = model(x), Answers(model)(x)
    assert logits.shape == answers.shape == (2, 3, 3)
    torch.testing.assert_close(answers[..., 0], torch.sigmoid(logits[..., 0]))
    torch.testing.assert_close(answers[..., 1], torch.exp(logits[..., 1]))
    torch.testing.assert_close(answers[..., 2], logits[..., 2])
    raw = model.towers(model.structure(model.inputs(x).flatten(0, 1)))
    torch.testing.assert_close(logits[..., 2], 4 * raw[:, 2].view(2, 3))


def test_the_score_is_the_sum_of_the_answers_by_weight():
    model, x = ranker(), request()
    head = ServedRanking(model, {"watch_time": 1.0, "click": 30.0})
    assert [spec.name for spec in served_outputs(TASKS)] == [
        "click_probability",
        "expected_watch_time",
        "expected_place",
        "score",
    ]
    click, seconds, place, score = head(with_weights(x))
    torch.testing.assert_close(score, seconds + 30 * click)
    *_, asked = head(with_weights(x, click=0, place=-2))
    torch.testing.assert_close(asked, seconds - 2 * place)
    mixed = with_weights(x)
    mixed["click_weight"][0] = 0.0
    *_, by_request = head(mixed)
    torch.testing.assert_close(by_request, torch.stack([seconds[0], (seconds + 30 * click)[1]]))


@pytest.mark.parametrize("weight", [math.inf, -math.inf, 1e38])
def test_no_weight_makes_the_score_infinite(weight):
    head = ServedRanking(ranker(tasks=TASKS[:2]), {"watch_time": 1.0})
    x = with_weights(request(), click=weight, watch_time=weight)
    del x["place_weight"]
    *answers, score = head(x)
    assert score.isfinite().all()
    assert (score.abs() <= head.maxima[-1]).all()
    assert all(answer.max() <= most for answer, most in zip(answers, head.maxima, strict=False))


def test_a_weight_of_no_task_is_named():
    with pytest.raises(
        InputError, match=r"score_weights names like; the ranker's tasks are click, watch_time"
    ):
        ServedRanking(ranker(), {"like": 1.0})


def test_one_task_has_no_score():
    model = ranker(model="ranking")
    (seconds,) = ServedRanking(model)(request())
    assert seconds.shape == (2, 3)
    assert [spec.name for spec in served_outputs(model.tasks)] == ["expected_watch_time"]
    assert weight_inputs(model.tasks) == []


@pytest.mark.parametrize("kind", ["ranking", "share_bottom", "omoe", "mmoe"])
def test_a_candidate_is_scored_alike_alone_and_among_others(kind):
    model, x = ranker(model=kind), request()
    one = {
        spec.name: x[spec.name][1:, 2:] if spec.dims == (-1,) else x[spec.name][1:] for spec in RANKING_INPUTS
    }
    torch.testing.assert_close(model(one)[0, 0], model(x)[1, 2])


def test_gates_are_those_of_the_rows():
    x = request()
    assert ranker(model="share_bottom").gates(x) is None
    gates = ranker(experts=5).gates(x)
    assert gates.shape == (6, 3, 5)
    torch.testing.assert_close(gates.sum(-1), torch.ones(6, 3))


def test_the_place_adds_to_the_logits_only_where_it_is_known():
    model, x = ranker(position_bias=True), request()
    alone = model(x)
    places = torch.tensor([[0, 5, -1], [POSITIONS, POSITIONS - 1, -1]])
    added = model(x | {"position": places}) - alone
    assert added[:, 2].abs().max() == 0
    assert added[:, :2].abs().min() > 0
    torch.testing.assert_close(added[1, 0], added[1, 1], msg="places past the last count as the last")
    assert "position" not in model.inputs.input_names


def test_one_place_in_ten_is_hidden_in_training():
    tower = PositionTower(tasks=2).train()
    hidden = (tower(torch.zeros(100, 100, dtype=torch.int64)) == 0).all(-1).float().mean()
    assert hidden.item() == pytest.approx(0.1, abs=0.02)


def test_tasks_are_distinct_and_rank_by_one_watch_time():
    with pytest.raises(ValueError, match="two tasks have one name"):
        RankingSettings(tasks=(TASKS[0], TASKS[0]))
    with pytest.raises(ValueError, match="only one task may be of the kind watch_time"):
        RankingSettings(tasks=(TASKS[1], TASKS[1].model_copy(update={"name": "other"})))
