import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from kfp.dsl import Dataset

from watchrank.config import Config, SparkSettings
from watchrank.errors import InputError, JobError
from watchrank_components import data

LABELS = {"sparkoperator.k8s.io/app-name": "{name}", "spark-role": "driver"}


@pytest.fixture
def cluster(kubernetes_server):
    with kubernetes_server("sparkapplications", LABELS, "spark-kubernetes-driver") as running:
        yield running


@pytest.fixture
def settings(tmp_path):
    return {
        "image": "registry/watchrank-spark:1",
        "namespace": "team",
        "workspace_claim": "workspace",
        "workspace_path": str(tmp_path),
        "secrets": {"s3": {"id": "AWS_ACCESS_KEY_ID"}},
        "executors": 7,
        "arguments": ["--set=ingestion.max_watch_ratio=30"],
        "poll_seconds": 0.02,
    }


def ingest(workspace, settings, log, run="training-abc"):
    """Call the component, with the manifest that the job leaves in the workspace."""
    (workspace / "events").mkdir(exist_ok=True)
    (workspace / "events" / "manifest.json").write_text('{"rows": 3}')
    events = Dataset(uri=str(workspace / "artifact"))
    config = Config().model_dump(mode="json")
    data.ingest.python_func(
        log, "own", str(workspace), config["ingestion"], config["engine"], settings, run, events
    )
    return events


def test_ingestion_is_submitted_followed_and_its_manifest_handed_on(cluster, settings, tmp_path, capsys):
    events = ingest(tmp_path, settings, "s3://bucket/log")
    assert json.loads(Path(events.path).read_text()) == {"rows": 3}
    assert events.metadata["folder"] == str(tmp_path / "events")
    assert capsys.readouterr().out.split() == ["one", "two", "three"]
    assert not cluster.alive
    (posted,) = cluster.posted
    spec, driver, executor = posted["spec"], posted["spec"]["driver"], posted["spec"]["executor"]
    assert (spec["type"], spec["mode"], spec["restartPolicy"]) == ("Python", "cluster", {"type": "Never"})
    assert spec["image"] == "registry/watchrank-spark:1"
    assert executor["instances"] == 7
    assert driver["serviceAccount"] == "watchrank-spark"
    assert spec["volumes"][0]["persistentVolumeClaim"]["claimName"] == "workspace"
    for pod in (driver, executor):
        assert [mount["mountPath"] for mount in pod["volumeMounts"]] == [str(tmp_path)]
        (variable,) = pod["env"]
        assert variable["valueFrom"]["secretKeyRef"] == {"name": "s3", "key": "id"}
    stage, *words = spec["arguments"]
    assert stage == "ingest"
    assert words[:6] == ["--data", "s3://bucket/log", "--source", "own", "--workspace", str(tmp_path)]
    chosen = [word.removeprefix("--set=") for word in words[6:]]
    assert 'engine.kind="spark"' in chosen
    assert chosen[-1] == "ingestion.max_watch_ratio=30"
    plain = [word for word in chosen[:-1] if not word.startswith("engine.kind=")]
    found = Config.load(None, plain)
    assert (found.ingestion, found.engine) == (Config().ingestion, Config().engine)


def test_features_are_submitted_and_their_folder_handed_on(cluster, settings, tmp_path):
    store = Dataset(uri=str(tmp_path / "artifact"))
    config = Config().model_dump(mode="json")
    data.build_features.python_func(
        Dataset(), str(tmp_path), "feature_repo", config["features"], config["engine"], settings, "r", store
    )
    (posted,) = cluster.posted
    assert posted["spec"]["arguments"][:5] == [
        "features",
        "--workspace",
        str(tmp_path),
        "--feature-repo",
        "feature_repo",
    ]
    assert store.metadata["folder"] == str(tmp_path / "features")
    assert json.loads(Path(store.path).read_text())["features"] == str(tmp_path / "features")


def test_a_second_try_of_a_run_takes_up_its_job_and_another_run_makes_one(cluster, settings, tmp_path):
    ingest(tmp_path, settings, "s3://bucket/log")
    (first,) = cluster.posted
    cluster.objects.clear()
    cluster.scripts = [["Running", "Complete"], ["Complete"]]
    cluster.place(first)
    ingest(tmp_path, settings, "s3://bucket/log")
    assert cluster.posted == [first]
    ingest(tmp_path, settings, "s3://bucket/log", run="training-def")
    first, second = cluster.posted
    assert first["metadata"]["name"] != second["metadata"]["name"]


def test_a_failed_driver_is_one_sentence(cluster, settings, tmp_path):
    cluster.scripts = [["Created", "Running", "Failed"]]
    cluster.message = "driver container failed with ExitCode: 2, Reason: Error"
    with pytest.raises(JobError) as told:
        ingest(tmp_path, settings, str(tmp_path / "log"))
    (name,) = cluster.objects
    assert str(told.value) == f"The SparkApplication team/{name} failed: {cluster.message}."


def test_a_log_that_spark_cannot_see_is_refused(cluster, settings, tmp_path):
    with pytest.raises(InputError, match="/log is not on the volume that other pods share"):
        ingest(tmp_path, settings, "/log")
    assert not cluster.calls


def test_the_file_that_the_driver_runs_is_the_command_line(cluster, settings, tmp_path):
    ingest(tmp_path, settings, "s3://bucket/log")
    scheme, file = cluster.posted[0]["spec"]["mainApplicationFile"].split("://")
    assert scheme == "local"
    done = subprocess.run([sys.executable, file, "settings"], capture_output=True, text=True, check=True)
    assert Config.model_validate(yaml.safe_load(done.stdout)) == Config()
    wrong = subprocess.run([sys.executable, file, "settings", "--set=x"], capture_output=True, check=False)
    assert wrong.returncode == 2


def test_the_application_may_be_named(cluster, settings, tmp_path):
    ingest(tmp_path, {**settings, "application": "local:///app/main.py"}, "s3://bucket/log")
    assert cluster.posted[0]["spec"]["mainApplicationFile"] == "local:///app/main.py"
    assert SparkSettings().executors == 2
