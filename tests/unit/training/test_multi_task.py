import numpy as np
import pytest
import torch

from watchrank.config import RankingSettings, TaskSettings, TrainingSettings
from watchrank.datasets.batches import Batch, RankingBatches, Share
from watchrank.datasets.ranking import RankingDataset
from watchrank.errors import InputError
from watchrank.evaluation.evaluate import evaluate_ranking, expert_use, predict_tasks, score_task
from watchrank.training.ranking import (
    label_names,
    learn_uncertainties,
    load_model,
    new_model,
    ranking_loss,
    train_ranking,
    training_batches,
)

CLICK = TaskSettings(name="click", kind="binary", label="clicked")
WATCH_TIME = TaskSettings(name="watch_time", kind="watch_time", label="watch_seconds")
LIKE = TaskSettings(name="like", kind="binary", label="liked", weight=2)
PLACE = TaskSettings(name="place", kind="regression", label="position")
TASKS = (CLICK, WATCH_TIME, LIKE, PLACE)


def settings(**changes):
    small = {"hidden": "256", "quantiles": 16, "experts": 3, "expert_hidden": (32,), "tower_hidden": (16,)}
    return RankingSettings(**{"model": "mmoe", "tasks": TASKS} | small | changes)


@pytest.fixture(scope="module")
def data(prepared):
    return RankingDataset.open(prepared.place.dataset)


def trained_with(prepared, output, ranking, **training):
    run = {"epochs": 2, "batch_size": 1_024}
    train_ranking(prepared.place.dataset, output, ranking, TrainingSettings(**run | training))
    return load_model(output)


@pytest.fixture(scope="module")
def model_folder(prepared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mmoe") / "model"
    trained_with(prepared, folder, settings(), epochs=3)
    return folder


def batch_of(labels, shown=None):
    labels = {name: torch.tensor(values) for name, values in labels.items()}
    shape = next(iter(labels.values())).shape
    return Batch({}, labels, torch.ones(shape) if shown is None else torch.tensor(shown))


class Answering(torch.nn.Module):
    """A network whose logits [B, K, T] are its parameter."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor(logits))

    def forward(self, x):
        return self.logits


def test_the_loss_is_the_tasks_weighed_and_a_missing_label_has_no_part(data):
    model = new_model(data, settings(tasks=(CLICK, LIKE)))
    labels = {"clicked": [[1.0, 0.0]], "liked": [[-1.0, 1.0]]}
    network = Answering([[[0.5, 3.0], [-1.0, 0.2]]])
    loss = ranking_loss(model, "exact")(network, batch_of(labels))
    softplus = torch.nn.functional.softplus
    click = softplus(torch.tensor([0.5, -1.0])) - torch.tensor([0.5, 0.0])
    like = softplus(torch.tensor(0.2)) - 0.2
    torch.testing.assert_close(loss, (click + torch.tensor([0.0, 2 * like]))[None])
    loss.sum().backward()
    assert network.logits.grad[0, 0, 1] == 0
    assert (network.logits.grad != 0).sum() == 3


def test_an_empty_place_has_no_loss(data):
    model = new_model(data, settings(tasks=(CLICK, LIKE)))
    labels = {"clicked": [[1.0, 1.0]], "liked": [[0.0, 0.0]]}
    network = Answering([[[0.5, 3.0], [0.5, 3.0]]])
    loss = ranking_loss(model, "exact")(network, batch_of(labels, [[1.0, 0.0]]))
    assert loss[0, 0] > 0
    assert loss[0, 1] == 0


def test_learned_uncertainties_weigh_the_losses(data):
    model = new_model(data, settings(tasks=(CLICK,)))
    network, batch = Answering([[[0.0]]]), batch_of({"clicked": [[1.0]]})
    plain = ranking_loss(model, "exact")(network, batch).item()
    model.log_variance.requires_grad_(True)
    with torch.no_grad():
        model.log_variance[0] = 0.7
    loss = ranking_loss(model, "exact")(network, batch)
    assert loss.item() == pytest.approx(plain * np.exp(-0.7) + 0.35)
    loss.sum().backward()
    assert model.log_variance.grad.item() == pytest.approx(0.5 - plain * np.exp(-0.7))


def test_several_tasks_are_learned_saved_and_calibrated(prepared, data, model_folder):
    model, test = load_model(model_folder), data.split("test")
    assert model.kind == "mmoe"
    answers = predict_tasks(model, test)
    found = {task.name: score_task(task, test, answers[task.name]) for task in TASKS}
    assert found["click"]["auc"] > 0.65
    assert found["click"]["sum_ratio"] == pytest.approx(1, abs=0.1)
    assert found["watch_time"]["xauc"] > 0.6
    assert found["watch_time"]["sum_ratio"] == pytest.approx(1, abs=0.2)
    assert found["place"]["rmse"] < 1.1 * np.std(test.impressions["position"])
    assert found["place"]["sum_ratio"] == pytest.approx(1, abs=0.1)
    assert all(model.calibrations[place].shift != 0 for place in range(3))
    assert model.calibrations[3].shift == 0, "a regression is not calibrated"


@pytest.mark.parametrize("kind", ["share_bottom", "omoe"])
def test_each_structure_learns_the_click(prepared, data, tmp_path, kind):
    model = trained_with(prepared, tmp_path / "m", settings(model=kind, tasks=(CLICK, WATCH_TIME)))
    test = data.split("test")
    assert score_task(CLICK, test, predict_tasks(model, test)["click"])["auc"] > 0.65


def test_uncertainties_are_learned_where_asked(prepared, tmp_path):
    fixed, learned = (
        trained_with(prepared, tmp_path / way, settings(), task_weighting=way)
        for way in ("fixed", "uncertainty")
    )
    assert fixed.log_variance.tolist() == [0, 0, 0, 0]
    click, watch_time, like, _ = learned.log_variance.tolist()
    assert like < click < watch_time, "likes are rare, and watch time has by far the largest loss"
    start = new_model(RankingDataset.open(prepared.place.dataset), settings())
    learn_uncertainties(start, RankingDataset.open(prepared.place.dataset).split("train"), "exact")
    rate = RankingDataset.open(prepared.place.dataset).split("train").impressions["clicked"].mean()
    entropy = -rate * np.log(rate) - (1 - rate) * np.log(1 - rate)
    assert start.log_variance[0].item() == pytest.approx(np.log(2 * entropy), rel=1e-3)
    assert learned.log_variance[0] != start.log_variance[0]


def test_metrics_leave_missing_labels_out(data):
    test = data.split("test")
    liked = np.array(test.impressions["liked"])
    liked[::2] = -1
    split = type(test)(test.requests, {**test.impressions, "liked": liked})
    found = score_task(LIKE, split, np.full(len(split), 0.25))
    assert found["impressions"] == (liked >= 0).sum() < len(liked)
    rate = liked[liked >= 0].mean()
    assert found["sum_ratio"] == pytest.approx(0.25 / rate)
    assert found["log_loss"] == pytest.approx(-(rate * np.log(0.25) + (1 - rate) * np.log(0.75)))


def test_the_use_of_experts_is_told(data, model_folder):
    model, test = load_model(model_folder), data.split("test")
    use = expert_use(model, test)
    assert list(use) == [task.name for task in TASKS]
    for found in use.values():
        assert sum(found["use"]) == pytest.approx(1)
        assert 0 <= found["entropy"] <= found["entropy_of_use"] <= 1
    with torch.no_grad():
        model.structure.gate.weight.zero_()
        assert expert_use(model, test)["click"]["entropy"] == pytest.approx(1)
        model.structure.gate.weight[0] = 1e4  # of the click's first expert
    collapsed = expert_use(model, test)
    assert collapsed["click"]["entropy_of_use"] < 0.9 < collapsed["like"]["entropy_of_use"]
    assert expert_use(new_model(data, settings(model="share_bottom")), test) is None


def test_the_report_shows_tasks_and_experts(prepared, model_folder, tmp_path):
    results = evaluate_ranking(model_folder, prepared.place.dataset, tmp_path / "evaluation")
    assert list(results["tasks"]) == list(results["experts"]) == [task.name for task in TASKS]
    assert results["models"]["ranker"]["xauc"] == results["tasks"]["watch_time"]["xauc"]
    page = (tmp_path / "evaluation" / "report.html").read_text()
    assert "<h2>Tasks</h2>" in page
    assert "<h2>Experts</h2>" in page
    assert "Model: mmoe" in page


def test_the_place_in_the_list_is_learned_apart(prepared, tmp_path):
    ranking = settings(model="share_bottom", tasks=(CLICK,), position_bias=True)
    model = trained_with(
        prepared, tmp_path / "m", ranking, epochs=5, learning_rate=1e-2, embedding_rate=1.0, patience=5
    )
    bias = model.position(torch.arange(8)[None])[0, :, 0]
    assert bias[:2].mean() > bias[-2:].mean() + 0.1, "the simulator's users click less further down"


def test_what_the_log_lacks_is_named(data):
    train = data.split("train")
    without = type(train)(train.requests, {k: v for k, v in train.impressions.items() if k != "liked"})
    run = TrainingSettings()
    with pytest.raises(InputError, match=r"has no liked, which ranking.tasks name; it has clicked, followed"):
        training_batches(without, new_model(data, settings()), run, Share())
    unknown = type(train)(train.requests, train.impressions | {"position": np.full(len(train), -1)})
    model = new_model(data, settings(model="ranking", position_bias=True))
    with pytest.raises(InputError, match=r"has no position, which ranking.position_bias needs"):
        training_batches(unknown, model, run, Share())
    with pytest.raises(InputError, match="weighting=resample draws by watch time"):
        training_batches(train, new_model(data, settings()), TrainingSettings(weighting="resample"), Share())


def test_a_ranker_without_watch_time_cannot_rank(prepared, tmp_path):
    trained_with(prepared, tmp_path / "m", settings(tasks=(CLICK,)), epochs=1)
    with pytest.raises(InputError, match="no task of the kind watch_time"):
        evaluate_ranking(tmp_path / "m", prepared.place.dataset, tmp_path / "evaluation")


def test_labels_are_those_of_the_tasks(data):
    assert label_names((LIKE, PLACE)) == {"liked", "position"}
    assert label_names((WATCH_TIME,)) == {"clicked", "watch_seconds"}
    batches = RankingBatches(data.split("train"), {"video_id", "now"}, 64, labels=label_names(TASKS))
    assert set(next(iter(batches.epoch())).labels) == {"clicked", "watch_seconds", "liked", "position"}
