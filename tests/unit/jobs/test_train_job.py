import json
import os
import shutil
import signal

import pytest
from pydantic import TypeAdapter

from watchrank.config import LaunchSettings, RankingSettings, TrainingSettings
from watchrank.errors import InputError, JobError
from watchrank.training.jobs import RankingJob, TrainingJob
from watchrank.training.launch import launch
from watchrank.training.train_job import manifest

LABELS = {
    "jobset.sigs.k8s.io/jobset-name": "{name}",
    "jobset.sigs.k8s.io/replicatedjob-name": "node",
    "batch.kubernetes.io/job-completion-index": "0",
}
CURVE = (
    '[{"epoch": 0, "train_loss": 1.5, "validation_loss": null, "seconds": 1.0, '
    '"impressions_a_second": 1.0, "loading_share": 0.1}]'
)


@pytest.fixture
def cluster(kubernetes_server):
    with kubernetes_server("trainjobs", LABELS, "node") as running:
        yield running


@pytest.fixture
def job(tmp_path):
    """A training whose model is there already: the server only tells that it was trained."""
    output = tmp_path / "workspace" / "model"
    output.mkdir(parents=True)
    (output / "learning_curve.json").write_text(CURVE)
    return RankingJob(
        dataset=tmp_path / "workspace" / "dataset",
        output=output,
        settings=RankingSettings(),
        training=TrainingSettings(),
    )


@pytest.fixture
def interruptible():
    """Ctrl-C is ignored in a process that a shell started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def settings(tmp_path):
    return LaunchSettings.model_validate(
        {
            "nodes": 3,
            "processes": 2,
            "image": "registry/watchrank-python-gpu:1",
            "namespace": "team",
            "workspace_claim": "workspace",
            "workspace_path": tmp_path / "workspace",
            "secrets": {"s3": {"id": "AWS_ACCESS_KEY_ID"}},
            "cpu": "8",
            "memory": "32Gi",
            "shared_memory": "4Gi",
            "accelerators": 2,
            "node_selector": {"pool": "gpu"},
            "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "poll_seconds": 0.02,
        }
    )


def test_a_train_job_is_made_followed_with_its_log_and_deleted(cluster, job, settings, capsys, caplog):
    cluster.scripts = [["Created", "Created", "Running", "Running", "Complete"]]
    (line,) = launch(job, settings)
    assert line.train_loss == 1.5
    assert capsys.readouterr().out.split() == ["one", "two", "three"]
    assert "Cannot read the log" not in caplog.text
    (posted,) = cluster.posted
    assert cluster.calls.count("DELETE <name>") == 1
    spec, trainer = posted["spec"], posted["spec"]["trainer"]
    assert spec["runtimeRef"] == {"name": "torch-distributed"}
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (3, 2)
    assert trainer["image"] == "registry/watchrank-python-gpu:1"
    *words, content = [*trainer["command"], *trainer["args"]]
    assert words == ["torchrun", "-m", "watchrank.training.worker"]
    assert TypeAdapter(TrainingJob).validate_json(content) == job
    amounts = {"cpu": "8", "memory": "32Gi", "nvidia.com/gpu": "2"}
    assert trainer["resourcesPerNode"] == {"requests": amounts, "limits": amounts}
    reference = {"secretKeyRef": {"name": "s3", "key": "id"}}
    assert trainer["env"] == [{"name": "AWS_ACCESS_KEY_ID", "valueFrom": reference}]
    (node,) = spec["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]["spec"]
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "workspace"
    assert pod["volumes"][1:] == [
        {"name": "tmp", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "4Gi"}},
    ]
    mounts = [mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]]
    assert mounts == [str(settings.workspace_path), "/tmp", "/dev/shm"]
    assert pod["nodeSelector"] == {"pool": "gpu"}
    assert pod["tolerations"] == [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}]


def test_what_lies_elsewhere_goes_to_the_nodes_and_comes_back_by_the_volume(cluster, job, settings, tmp_path):
    dataset, output = tmp_path / "artifacts" / "dataset", tmp_path / "artifacts" / "model"
    dataset.mkdir(parents=True)
    (dataset / "manifest.json").write_text('{"rows": 3}')
    elsewhere = job.model_copy(update={"dataset": dataset, "output": output})
    folder = tmp_path / "workspace" / "training" / elsewhere.content
    cluster.scripts = [["Running", "Failed"], ["Running", "Complete"]]
    with pytest.raises(JobError):
        launch(elsewhere, settings)
    assert json.loads((folder / "dataset" / "manifest.json").read_text()) == {"rows": 3}
    assert not output.exists()
    shutil.copytree(job.output, folder / "model")  # as the nodes leave it
    assert [epoch.train_loss for epoch in launch(elsewhere, settings)] == [1.5]
    assert (output / "learning_curve.json").exists()
    assert not folder.exists()
    first, second = cluster.posted
    assert first["metadata"]["name"] == second["metadata"]["name"]
    assert str(folder / "model") in first["spec"]["trainer"]["args"][-1]


def test_the_server_refuses_a_train_job_with_a_wrong_field(cluster, job, settings, monkeypatch):
    wrong = manifest(job, settings)
    wrong["spec"]["trainer"]["nodes"] = wrong["spec"]["trainer"].pop("numNodes")
    monkeypatch.setattr("watchrank.training.train_job.manifest", lambda *given: wrong)
    with pytest.raises(JobError, match=r"422 .*unknown fields. Correct what it names\.$"):
        launch(job, settings)
    assert not cluster.alive


def test_a_failure_is_one_sentence_and_the_next_try_begins_anew(cluster, job, settings, capsys):
    cluster.scripts = [["Created", "Running", "Failed"], ["Created", "Running", "Complete"]]
    cluster.at_look = {1: lambda: job.failure.write_text("InputError: The dataset is empty.")}
    with pytest.raises(JobError) as told:
        launch(job, settings)
    (name,) = cluster.objects
    assert str(told.value) == (
        f"The TrainJob team/{name} failed: jobset failed due to one or more job failures, "
        "because of InputError: The dataset is empty."
    )
    assert capsys.readouterr().out.split() == ["one", "two", "three"]
    cluster.at_look = {}
    launch(job, settings)
    assert [made["metadata"]["name"] for made in cluster.posted] == [name, name]
    assert not cluster.alive


def test_one_that_runs_already_is_taken_up(cluster, job, settings, capsys):
    cluster.place(manifest(job, settings))
    launch(job, settings)
    assert not cluster.posted
    assert capsys.readouterr().out.split() == ["one", "two", "three"]


def test_one_that_is_being_deleted_is_waited_for(cluster, job, settings):
    body = manifest(job, settings)
    cluster.scripts.append(["Complete"])
    cluster.place(body)
    cluster.delete(body["metadata"]["name"])
    launch(job, settings)
    assert len(cluster.posted) == 1


def test_a_log_that_breaks_off_is_told_once_and_whole(cluster, job, settings, capsys):
    cluster.scripts = [["Created", *["Running"] * 10, "Complete"]]
    cluster.cut_after = 2
    launch(job, settings)
    assert capsys.readouterr().out.split() == ["one", "two", "three"]
    assert cluster.calls.count("GET log") > 2


def test_a_job_that_ends_before_its_log_is_told_to_the_end(cluster, job, settings, capsys):
    cluster.scripts = [["Running", "Complete"]]
    cluster.seconds_a_line = 0.2
    launch(job, settings)
    assert capsys.readouterr().out.split() == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("number", "ended"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_deletes_the_train_job(number, ended, cluster, job, settings, interruptible):
    cluster.scripts = [["Created", "Running"]]
    cluster.at_look = {3: lambda: os.kill(os.getpid(), number)}
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ended) as told:
        launch(job, settings)
    assert not cluster.alive
    assert "DELETE <name>" in cluster.calls
    assert signal.getsignal(signal.SIGTERM) == before
    if ended is SystemExit:
        assert told.value.code == 128 + number


def test_one_that_takes_too_long_is_deleted(cluster, job, settings):
    cluster.scripts = [["Created"]]
    short = settings.model_copy(update={"timeout_seconds": 0})
    with pytest.raises(JobError, match="took too long, it is still not complete: it was deleted"):
        launch(job, short)
    assert "DELETE <name>" in cluster.calls


def test_one_that_someone_deletes_is_said_so(cluster, job, settings):
    cluster.scripts = [["Created", "Running"]]
    cluster.at_look = {2: lambda: cluster.delete(*cluster.objects)}
    with pytest.raises(JobError, match="was deleted by someone else"):
        launch(job, settings)


def test_a_server_that_is_busy_for_a_while_is_borne(cluster, job, settings):
    cluster.refused = {"GET <name>": [None, None, 503, 429, 500], "GET pods": [500]}
    launch(job, settings)
    assert not cluster.alive


def test_a_server_that_stays_down_leaves_the_job(cluster, job, settings):
    cluster.refused = {"GET <name>": [None, None, *[503] * 30]}
    with pytest.raises(JobError, match=r"503 SERVICE UNAVAILABLE.* Try again\.$"):
        launch(job, settings)
    assert cluster.alive


def test_a_refused_call_is_one_sentence_and_the_job_goes_on(cluster, job, settings):
    cluster.refused = {"GET pods": [403]}
    with pytest.raises(JobError) as told:
        launch(job, settings)
    (name,) = cluster.objects
    assert str(told.value) == (
        f"Kubernetes refused a call for the TrainJob {name}: 403 FORBIDDEN, User 'u' cannot do GET pods. "
        "Give the service account the right to it."
    )
    assert "DELETE <name>" not in cluster.calls


def test_a_server_that_is_gone_leaves_the_job(kubernetes_server, job, settings):
    with kubernetes_server("trainjobs", LABELS, "node"):
        pass
    with pytest.raises(
        JobError, match=r"does not answer about the TrainJob .*: \w+Error\. Check the cluster"
    ):
        launch(job, settings)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"image": ""}, r"needs launch\.image\. Set it\."),
        ({"workspace_claim": ""}, r"needs launch\.workspace_claim\. Set it\."),
        ({"workspace_path": "/elsewhere"}, r"is not on the volume that other pods share, /elsewhere\."),
        ({"namespace": ""}, r"Set the namespace\."),
    ],
)
def test_what_is_missing_is_said_before_anything_is_sent(changed, sentence, cluster, job, settings):
    wrong = LaunchSettings.model_validate({**settings.model_dump(), **changed})
    with pytest.raises(InputError, match=sentence):
        launch(job, wrong)
    assert not cluster.calls


def test_without_a_cluster_it_says_so(job, settings, monkeypatch):
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", "/nowhere")
    with pytest.raises(InputError, match="There is no cluster to work on"):
        launch(job, settings)
