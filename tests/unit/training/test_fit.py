import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from watchrank.config import FitSettings
from watchrank.datasets.batches import RankingBatches
from watchrank.datasets.ranking import RankingDataset
from watchrank.errors import InputError
from watchrank.models.calibration import Calibration
from watchrank.training import fit as fit_module
from watchrank.training.fit import Epoch, Fit
from watchrank.training.ranking import load_model, new_model, ranking_loss, train_ranking

TRAIN = """
import sys, json
from pathlib import Path
from watchrank.config import RankingSettings, TrainingSettings
from watchrank.training.ranking import train_ranking
dataset, output = map(Path, sys.argv[1:3])
ranking, training = map(json.loads, sys.argv[3:])
train_ranking(dataset, output, RankingSettings(**ranking), TrainingSettings(**training))
"""


def test_training_lowers_the_validation_loss_and_ends_on_the_best_epoch(trained):
    curve = fit_curve(trained)
    data = RankingDataset.open(trained.place.dataset)
    untrained = new_model(data, trained.config.ranking)
    names = untrained.inputs.input_names
    batches = RankingBatches(data.split("validation"), names, 4_096)

    def loss(model):
        with torch.no_grad():
            losses = [ranking_loss(model, "exact")(model.eval(), batch).sum() for batch in batches.epoch()]
        return torch.stack(losses).sum().item() / batches.rows

    best = min(line["validation_loss"] for line in curve)
    model = load_model(trained.place.model)
    assert model.calibrations[0].shift.item() != 0, "the model is calibrated after training"
    model.calibrations[0] = Calibration()
    assert loss(model) == pytest.approx(best, rel=1e-5)
    assert best < 0.98 * loss(untrained)


def fit_curve(trained):
    return json.loads((trained.place.model / "learning_curve.json").read_text())


def test_a_run_killed_in_mid_epoch_ends_as_an_uninterrupted_one(prepared, tmp_path):
    training = prepared.config.training.model_copy(update={"checkpoint_steps": 3, "batch_size": 512})
    arguments = [
        str(prepared.place.dataset),
        str(tmp_path / "killed"),
        prepared.config.ranking.model_dump_json(),
        training.model_dump_json(),
    ]
    train_ranking(prepared.place.dataset, tmp_path / "whole", prepared.config.ranking, training)
    process = subprocess.Popen([sys.executable, "-c", TRAIN, *arguments])
    checkpoint = tmp_path / "killed.checkpoint"
    while not checkpoint.exists():
        assert process.poll() is None, "training ended before it was killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()
    assert torch.load(checkpoint, weights_only=True)["state"]["step"] > 0
    subprocess.run([sys.executable, "-c", TRAIN, *arguments], check=True)
    whole = load_file(tmp_path / "whole" / "weights.safetensors")
    resumed = load_file(tmp_path / "killed" / "weights.safetensors")
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0)
    assert not checkpoint.exists()


def test_a_run_killed_at_the_end_of_an_epoch_ends_as_an_uninterrupted_one(prepared, tmp_path, monkeypatch):
    training = prepared.config.training.model_copy(update={"checkpoint_steps": 1})
    arguments = (prepared.place.dataset, tmp_path / "killed", prepared.config.ranking, training)
    train_ranking(prepared.place.dataset, tmp_path / "whole", prepared.config.ranking, training)
    with monkeypatch.context() as patch:
        patch.setattr(Fit, "_close_epoch", lambda fit, clock: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train_ranking(*arguments)
    train_ranking(*arguments)
    whole, resumed = (load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_a_checkpoint_of_another_run_is_not_used(prepared, tmp_path):
    data = RankingDataset.open(prepared.place.dataset)
    settings = prepared.config.training.model_copy(update={"epochs": 1})

    def run(key):
        torch.manual_seed(0)
        model = new_model(data, prepared.config.ranking)
        names = model.inputs.input_names
        batches = RankingBatches(data.split("train"), names, 4_096, seed=0)
        checkpoint = tmp_path / "checkpoint"
        return Fit(
            model, ranking_loss(model, "exact"), batches, None, settings, checkpoint=checkpoint, key=key
        ).run()

    first = run("a")
    assert run("a")[0].seconds == first[0].seconds, "a finished run resumes at its end"
    assert run("b")[0].seconds != first[0].seconds


def test_it_stops_when_validation_gets_no_better(prepared, tmp_path, monkeypatch):
    data = RankingDataset.open(prepared.place.dataset)
    settings = prepared.config.training.model_copy(update={"epochs": 9, "patience": 2})
    model = new_model(data, prepared.config.ranking)
    batches = RankingBatches(data.split("validation"), model.inputs.input_names, 4_096, seed=0)
    losses = iter([5.0, 4.0, 6.0, 4.5, 1.0])
    run = Fit(
        model, ranking_loss(model, "exact"), batches, batches, settings, checkpoint=tmp_path / "c", key="k"
    )
    monkeypatch.setattr(run, "_validate", lambda: next(losses))
    assert [line.validation_loss for line in run.run()] == [5.0, 4.0, 6.0, 4.5]


def test_the_device_is_the_one_that_is_there():
    settings = FitSettings(device="auto")
    assert fit_module.device_of(settings).type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("setting", [{"objective": "youtube"}, {"weighting": "resample"}])
def test_the_other_objective_and_weighting_train_too(prepared, tmp_path, setting):
    training = prepared.config.training.model_copy(update=setting)
    curve = train_ranking(prepared.place.dataset, tmp_path / "model", prepared.config.ranking, training)
    assert curve[-1].validation_loss < 1.2 * curve[0].validation_loss
    assert (tmp_path / "model" / "weights.safetensors").exists()


def weights_of(folder):
    return load_file(folder / "weights.safetensors")


def trained_with(prepared, folder, **training):
    """Train without the dropout of ids, whose draws depend on how a batch is cut."""
    ranking = prepared.config.ranking.model_copy(update={"id_dropout": 0.0})
    settings = prepared.config.training.model_copy(update={"calibrate": False, **training})
    curve = train_ranking(prepared.place.dataset, folder, ranking, settings)
    return curve, weights_of(folder)


def assert_same(found, expected):
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=2e-3, atol=2e-4, msg=name)


def test_accumulated_gradients_of_small_batches_are_those_of_a_large_one(prepared, tmp_path):
    curve, expected = trained_with(prepared, tmp_path / "whole", batch_size=1_024)
    again, found = trained_with(prepared, tmp_path / "parts", batch_size=256, accumulate=4)
    assert_same(found, expected)
    assert again[-1].train_loss == pytest.approx(curve[-1].train_loss, rel=1e-4)


def test_two_processes_under_torchrun_learn_what_one_learns(prepared, tmp_path):
    curve, expected = trained_with(prepared, tmp_path / "one", batch_size=1_024, sparse_rows=100)
    script = tmp_path / "train.py"
    script.write_text(TRAIN)
    ranking = prepared.config.ranking.model_copy(update={"id_dropout": 0.0})
    training = prepared.config.training.model_copy(
        update={
            "calibrate": False,
            "batch_size": 512,
            "accumulate": 2,
            "sparse_rows": 100,
            "checkpoint_steps": 3,
        }
    )
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        script,
    ]
    settings = [ranking.model_dump_json(), training.model_dump_json()]
    subprocess.run([*torchrun, prepared.place.dataset, tmp_path / "two", *settings], check=True, timeout=300)
    assert_same(weights_of(tmp_path / "two"), expected)
    line = json.loads((tmp_path / "two" / "learning_curve.json").read_text())[-1]
    assert line["train_loss"] == pytest.approx(curve[-1].train_loss, rel=1e-4)
    assert line["validation_loss"] == pytest.approx(curve[-1].validation_loss, rel=1e-4)
    assert not (tmp_path / "two.checkpoint").exists()


def test_mixed_precision_trains_to_nearly_the_same_loss(prepared, tmp_path):
    curve, expected = trained_with(prepared, tmp_path / "float32")
    lower, found = trained_with(prepared, tmp_path / "bfloat16", precision="bfloat16")
    assert lower[-1].validation_loss == pytest.approx(curve[-1].validation_loss, rel=2e-2)
    assert found["towers.logit.weight"].dtype == torch.float32
    assert not torch.equal(found["structure.bottom.0.weight"], expected["structure.bottom.0.weight"])


def test_a_large_table_is_trained_by_the_rows_of_each_batch_alone(prepared):
    data = RankingDataset.open(prepared.place.dataset)
    model = new_model(data, prepared.config.ranking)
    table = model.inputs.embeddings["video"].table
    settings = prepared.config.training.model_copy(update={"sparse_rows": 100, "epochs": 1})
    before = table.weight.detach().clone()
    batches = RankingBatches(data.split("train"), model.inputs.input_names, 64, seed=0)
    run = Fit(model, ranking_loss(model, "exact"), batches, None, settings, checkpoint=None, key="")
    batch = next(batches.epoch())
    run._step([batch])
    ids = torch.cat([batch.features["video_id"].flatten(), batch.features["watched_video_ids"].flatten()])
    touched = torch.zeros(len(before), dtype=torch.bool)
    touched[model.inputs.embeddings["video"].vocabulary(ids)] = True
    touched[0] = False
    changed = (table.weight != before).any(1)
    assert table.weight.grad.is_sparse
    assert not model.inputs.embeddings["gender"].table.weight.grad.is_sparse
    assert touched.sum() > 20
    assert not (changed & ~touched).any()
    assert changed[touched].float().mean() > 0.9


@pytest.mark.slow
def test_a_compiled_model_learns_the_same(prepared, tmp_path):
    curve, expected = trained_with(prepared, tmp_path / "eager", epochs=1)
    again, found = trained_with(prepared, tmp_path / "compiled", epochs=1, compile=True)
    assert again[-1].validation_loss == pytest.approx(curve[-1].validation_loss, rel=1e-3)
    assert found.keys() == expected.keys()


def test_a_line_of_the_learning_curve_names_the_share_of_loading(trained):
    line = Epoch(**fit_curve(trained)[0])
    assert f"{line.loading_share:.1%} of it loading" in str(line)


def test_excluding_what_is_no_feature_or_is_needed_is_an_input_error(prepared, tmp_path):
    for name in ("colour", "video_id"):
        ranking = prepared.config.ranking.model_copy(update={"exclude": (name,)})
        with pytest.raises(InputError, match=f"exclude names {name}; it may name"):
            train_ranking(prepared.place.dataset, tmp_path / "model", ranking, prepared.config.training)
