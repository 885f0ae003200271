"""The ranker's gate on trained models: the champion is a real release."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from kfp import dsl

from watchrank.config import GateSettings, RankingSettings, TrainingSettings
from watchrank.datasets.ranking import RankingDataset
from watchrank.deployment.model_repository import point, publish, serving
from watchrank.errors import GateError
from watchrank.evaluation.champion import ask_champion
from watchrank.evaluation.evaluate import predict_tasks
from watchrank.evaluation.gate import gate_ranking
from watchrank.export.release import export_ranking
from watchrank.releases import MANIFEST, checksums, read_manifest
from watchrank.storage import write_json
from watchrank.training.ranking import left_out, load_model, new_model, save_model, train_ranking
from watchrank.workspace import Workspace
from watchrank_components.ranking import evaluate_ranking as component

pytestmark = pytest.mark.slow  # a minute and more

GATES = GateSettings(resamples=200)


@pytest.fixture(scope="module")
def data(prepared):
    return RankingDataset.open(prepared.place.dataset)


@pytest.fixture(scope="module")
def untrained(prepared, data, tmp_path_factory):
    """A model that has learned nothing."""
    folder, settings = tmp_path_factory.mktemp("untrained") / "model", prepared.config.ranking
    save_model(new_model(data, settings), folder, settings, left_out(data, settings), [], {})
    return folder


@pytest.fixture(scope="module")
def mmoe(prepared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mmoe") / "model"
    ranking = RankingSettings(model="mmoe", quantiles=16, experts=2, expert_hidden=(64,))
    train_ranking(prepared.place.dataset, folder, ranking, TrainingSettings(epochs=2, batch_size=1_024))
    return folder


@pytest.fixture(scope="module")
def release_of_mmoe(mmoe, released, data, prepared, tmp_path_factory):
    """The release, with the ranker of two tasks."""
    folder = tmp_path_factory.mktemp("releases") / released.name
    shutil.copytree(released, folder)
    export_ranking(load_model(mmoe), data, folder / "ranking" / "model.onnx", prepared.config.export)
    manifest = read_manifest(folder)
    (folder / MANIFEST).unlink()
    write_json(folder / MANIFEST, manifest | {"files": checksums(folder)})
    return folder


@pytest.fixture
def place(prepared, released, untrained, tmp_path):
    """A workspace that serves the release and has an untrained model."""
    place = Workspace(tmp_path / "work")
    place.releases.mkdir(parents=True)
    for target, source in {
        place.dataset: prepared.place.dataset,
        place.truth: prepared.place.truth,
        place.model: untrained,
        place.release(1): released,
    }.items():
        target.symlink_to(source)
    publish(released, 1, place.model_repository)
    point("ranking", 1, place.model_repository)
    return place


def served(place):
    return checksums(place.model_repository), checksums(place.releases)


def test_the_champion_answers_as_its_model_does(release_of_mmoe, mmoe, data):
    champion = ask_champion(release_of_mmoe, data)
    assert champion.release == "000001"
    assert champion.tasks == champion.answers.keys() == {"click_probability", "expected_watch_time"}
    expected = predict_tasks(load_model(mmoe), data.split("test"))
    np.testing.assert_allclose(champion.answers["click_probability"], expected["click"], rtol=1e-4)
    np.testing.assert_allclose(champion.answers["expected_watch_time"], expected["watch_time"], rtol=1e-4)


def test_the_same_model_passes_with_no_difference(trained, released, tmp_path):
    decision = gate_ranking(trained.place.model, trained.place.dataset, released, tmp_path, GateSettings())
    assert decision.passed, decision.reasons
    against = [check for check in decision.checks if check.against == "champion"]
    assert {check.segment for check in against} == {"all", "surface feed", "surface home"}
    for check in against:
        assert abs(check.difference) < 1e-4, check.name
        assert abs(check.low) < 1e-3, check.name
    assert json.loads((tmp_path / "gate.json").read_text())["champion"] == released.name


def test_a_first_release_passes_when_it_was_trained(trained, mmoe, untrained, tmp_path):
    dataset = trained.place.dataset
    for model in (trained.place.model, mmoe):
        decision = gate_ranking(model, dataset, None, tmp_path, GateSettings())
        assert decision.passed, decision.reasons
    decision = gate_ranking(untrained, dataset, None, tmp_path, GATES)
    assert "not better beyond chance" in " ".join(decision.reasons)


def test_more_training_passes_and_is_told_as_better(trained, released, tmp_path):
    config, dataset = trained.config, trained.place.dataset
    train_ranking(
        dataset, tmp_path / "model", config.ranking, config.training.model_copy(update={"epochs": 6})
    )
    decision = gate_ranking(tmp_path / "model", dataset, released, tmp_path, GateSettings())
    assert decision.passed, decision.reasons
    loss = next(check for check in decision.checks if check.metric == "per_user_loss")
    assert loss.against == "champion"
    assert loss.high < 0


def test_several_tasks_against_a_champion_of_watch_time(mmoe, prepared, released, tmp_path):
    decision = gate_ranking(mmoe, prepared.place.dataset, released, tmp_path, GATES)
    of_click = [check for check in decision.checks if check.task == "click_probability"]
    assert all(check.passed for check in of_click), decision.reasons
    whole = [check for check in decision.checks if check.segment == "all" and check.against != "bounds"]
    found = {(check.task, check.metric, check.against) for check in whole}
    assert found == {
        ("expected_watch_time", "per_user_loss", "champion"),
        ("click_probability", "log_loss", "video mean"),
        ("click_probability", "log_loss", "global mean"),
        ("click_probability", "auc", "video mean"),
        ("click_probability", "auc", "global mean"),
    }


def test_watch_time_alone_against_a_champion_of_several_tasks(trained, release_of_mmoe, tmp_path):
    place = trained.place
    decision = gate_ranking(place.model, place.dataset, release_of_mmoe, tmp_path, GATES)
    assert decision.reasons == ["click_probability: the champion serves it, the challenger does not"]


@pytest.mark.parametrize("feature", ["device", "channel_id"])
def test_a_champion_that_reads_what_the_log_lacks_is_no_comparison(
    released, trained, feature, tmp_path, data
):
    manifest = data.manifest | {"absent_features": [feature]}
    champion = ask_champion(released, replace(data, manifest=manifest))
    assert not champion.answers
    assert champion.tasks == {"expected_watch_time"}
    assert champion.notes == (
        f"No comparable champion: it reads the feature {feature}, which the dataset lacks.",
    )
    shutil.copytree(data.path, tmp_path / "dataset")
    for file in (tmp_path / "dataset" / "test").glob(f"*/{feature}.npy"):
        file.unlink()
    assert ask_champion(released, RankingDataset.open(tmp_path / "dataset")).notes == champion.notes


def test_a_champion_of_other_shapes_is_no_comparison(released, data, tmp_path):
    shutil.copytree(data.path, tmp_path / "dataset")
    column = tmp_path / "dataset" / "test" / "requests" / "watched_video_ids.npy"
    np.save(column, np.load(column)[:, :20])
    (note,) = ask_champion(released, RankingDataset.open(tmp_path / "dataset")).notes
    assert "watched_video_ids as tensor(int64) of width 50; the dataset has int64, [20]" in note


def test_a_damaged_champion_is_told_and_the_baselines_decide(released, trained, tmp_path):
    damaged = tmp_path / "000009"
    shutil.copytree(released, damaged)
    with (damaged / "ranking" / "model.onnx").open("ab") as file:
        file.write(b"?")
    for release, word in ((damaged, "damaged"), (tmp_path / "000010", "is no release")):
        place = trained.place
        decision = gate_ranking(place.model, place.dataset, release, tmp_path, GATES)
        assert decision.passed, decision.reasons
        assert decision.champion == release.name
        assert {check.against for check in decision.checks} == {"video mean", "global mean", "bounds"}
        assert any("No comparable champion" in note and word in note for note in decision.notes)


def test_a_champion_that_has_seen_the_window_is_told(released, data, tmp_path):
    own = data.manifest["splits"]
    early = {**own, "test": own["test"] | {"from": own["validation"]["until"]}}
    champion = ask_champion(released, replace(data, manifest=data.manifest | {"splits": early}))
    assert champion.answers
    assert "which is in this window" in champion.notes[0]
    assert ask_champion(released, data).notes == ()


def test_the_command_refuses_a_bad_model_and_leaves_what_serves(place):
    before = served(place)
    command = [sys.executable, "-c", "from watchrank.cli import main; main()", "evaluate"]
    options = ["--workspace", str(place.root), "--set", "gates.resamples=200"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 6, done.stderr
    assert "GateError: The ranker does not pass its gate: expected_watch_time: per_user_loss" in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads((place.evaluation / "gate.json").read_text())["passed"] is False
    assert "is refused; champion: release 000001." in (place.evaluation / "gate.md").read_text()
    assert (place.evaluation / "metrics.json").is_file()
    assert served(place) == before
    forced = subprocess.run(
        [*command, *options, "--set", "gates.force=true"], capture_output=True, text=True, check=False
    )
    assert forced.returncode == 0, forced.stderr
    kept = json.loads((place.evaluation / "gate.json").read_text())
    assert kept["forced"]
    assert kept["reasons"]


def test_the_component_refuses_a_bad_model_after_it_wrote_the_decision(place, tmp_path):
    before = served(place)
    outputs = {
        "metrics": dsl.Metrics(),
        "roc": dsl.ClassificationMetrics(),
        "results": dsl.Dataset(uri=str(tmp_path / "results")),
        "report": dsl.HTML(uri=str(tmp_path / "report")),
        "gate": dsl.Markdown(uri=str(tmp_path / "gate")),
    }
    with pytest.raises(GateError, match="per_user_loss"):
        component.python_func(
            model=dsl.Model(uri=str(place.model)),
            dataset=dsl.Dataset(uri=str(place.dataset)),
            truth="",
            workspace=str(place.root),
            model_repository=str(place.model_repository),
            release_store="",
            gates=GATES.model_dump(mode="json"),
            **outputs,
        )
    assert "is refused; champion: release 000001." in (tmp_path / "gate").read_text()
    assert outputs["gate"].metadata == {"passed": False}
    assert json.loads((tmp_path / "results").read_text())["models"]["ranker"]["per_user_loss"] > 0.4
    assert served(place) == before
    assert serving(place.model_repository, "ranking") == 1
