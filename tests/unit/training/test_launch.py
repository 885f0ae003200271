import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file

from watchrank.config import (
    CandidateSettings,
    CandidateTrainingSettings,
    LaunchSettings,
    TextSettings,
    TextTrainingSettings,
)
from watchrank.errors import InputError, JobError
from watchrank.training.jobs import CandidatesJob, RankingJob, TextJob, TrainingJob
from watchrank.training.launch import launch

TWO = LaunchSettings(processes=2)
LAUNCH = """
import sys
from pydantic import TypeAdapter
from watchrank.config import LaunchSettings
from watchrank.training.jobs import TrainingJob
from watchrank.training.launch import launch
launch(TypeAdapter(TrainingJob).validate_json(sys.argv[1]), LaunchSettings(processes=2))
"""


def ranking_job(prepared, output, dataset=None, **training):
    """Return a training without the dropout of ids, whose draws depend on how a batch is cut."""
    settings = {"batch_size": 1_024, "calibrate": False, **training}
    return RankingJob(
        dataset=dataset or prepared.place.dataset,
        output=output,
        settings=prepared.config.ranking.model_copy(update={"id_dropout": 0.0}),
        training=prepared.config.training.model_copy(update=settings),
    )


def test_two_processes_learn_what_one_learns(prepared, tmp_path, capfd):
    alone = launch(ranking_job(prepared, tmp_path / "one"), LaunchSettings())
    together = launch(ranking_job(prepared, tmp_path / "two"), TWO)
    expected, found = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=2e-3, atol=2e-4, msg=name)
    assert [line.epoch for line in together] == [line.epoch for line in alone]
    assert together[-1].train_loss == pytest.approx(alone[-1].train_loss, rel=1e-4)
    assert together[-1].validation_loss == pytest.approx(alone[-1].validation_loss, rel=1e-4)
    assert capfd.readouterr().err.count("epoch 1: loss") == 2, "each process tells its log here"


@pytest.mark.parametrize(
    "job",
    [
        CandidatesJob(
            dataset="/data",
            output="/model",
            settings=CandidateSettings(dim=8),
            training=CandidateTrainingSettings(epochs=2),
        ),
        TextJob(
            dataset="/data",
            output="/model",
            settings=TextSettings(dim=8),
            training=TextTrainingSettings(epochs=2),
        ),
    ],
    ids=lambda job: job.model,
)
def test_a_job_comes_through_its_json_as_it_was(job):
    assert TypeAdapter(TrainingJob).validate_json(job.model_dump_json()) == job
    with pytest.raises(InputError, match="/data"):
        job.train()


def test_the_key_of_a_job_tells_settings_data_and_output_apart(prepared, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    job = ranking_job(prepared, tmp_path / "a", data)
    keys = {job.key, ranking_job(prepared, tmp_path / "a", data).key}
    assert len(keys) == 1
    keys |= {
        ranking_job(prepared, tmp_path / "b", data).key,
        ranking_job(prepared, tmp_path / "a", data, epochs=9).key,
    }
    (data / "manifest.json").write_text("{}")
    assert len(keys | {job.key}) == 4


def test_a_process_that_fails_is_one_sentence(prepared, tmp_path):
    job = ranking_job(prepared, tmp_path / "model", tmp_path / "nowhere")
    job.failure.write_text("of an earlier run")
    with pytest.raises(JobError) as told:
        launch(job, TWO)
    sentence = str(told.value)
    assert sentence.startswith(
        "The training of ranking on 2 processes ended with exit code 1, because of InputError: "
    )
    assert str(tmp_path / "nowhere") in sentence
    assert "\n" not in sentence
    assert not (tmp_path / "model").exists()


def test_what_one_process_lacks_the_launching_one_says_itself(prepared, tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        launch(ranking_job(prepared, tmp_path / "model", tmp_path / "nowhere"), LaunchSettings())


def of_job(output):
    """Return the processes whose command line names the output, as JSON does."""
    lines = {int(place.parent.name): place for place in Path("/proc").glob("[0-9]*/cmdline")}
    found = set()
    for number, place in lines.items():
        try:
            if json.dumps(str(output)).encode() in place.read_bytes():
                found.add(number)
        except OSError:  # it has ended
            continue
    return found


def test_sigterm_ends_all_processes(prepared, tmp_path):
    job = ranking_job(prepared, tmp_path / "model", epochs=10_000, patience=10_000, checkpoint_steps=1)
    process = subprocess.Popen([sys.executable, "-c", LAUNCH, job.model_dump_json()])
    try:
        while not (tmp_path / "model.checkpoint").exists():
            assert process.poll() is None, "training ended before it was told to"
            time.sleep(0.02)
        assert len(of_job(job.output)) == 4, "the launching one, torchrun and two workers"
        process.terminate()
        assert process.wait(120) == 128 + signal.SIGTERM
        assert not of_job(job.output)
    finally:
        for left in of_job(job.output):
            os.kill(left, signal.SIGKILL)
