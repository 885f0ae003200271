"""The pods of jobs keep Pod Security's level `restricted`, which the manifests' namespace enforces."""

import re
from pathlib import Path

import pytest
from kubeflow_spark_api.models import SparkV1beta2SparkApplication
from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob

from watchrank import spark_application
from watchrank.config import LaunchSettings, RankingSettings, SparkSettings, TrainingSettings
from watchrank.kubernetes_pods import USER
from watchrank.training import train_job
from watchrank.training.jobs import RankingJob

DOCKERFILE = Path(__file__).parents[3] / "infra" / "docker" / "Dockerfile"
POD = {"image": "registry/watchrank-python:1", "workspace_claim": "workspace"}


@pytest.fixture
def train_job_pod():
    job = RankingJob(
        dataset="/workspace/dataset",
        output="/workspace/model",
        settings=RankingSettings(),
        training=TrainingSettings(),
    )
    body = train_job.manifest(job, LaunchSettings(**POD, nodes=2))
    assert TrainerV1alpha1TrainJob.from_dict(body).to_dict() == body
    patch = body["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]
    return patch["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


@pytest.fixture
def spark_pods():
    body = spark_application.manifest("ingest", [], SparkSettings(**POD), "run")
    assert SparkV1beta2SparkApplication.from_dict(body).to_dict() == body
    return [body["spec"]["driver"], body["spec"]["executor"]]


def assert_restricted(pod, container):
    assert pod["runAsNonRoot"] is True
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["runAsUser"] == pod["runAsGroup"] == pod["fsGroup"] == USER
    assert container["allowPrivilegeEscalation"] is False
    assert container["capabilities"] == {"drop": ["ALL"]}


def test_the_nodes_of_a_training_job_are_restricted_and_write_to_volumes_only(train_job_pod):
    (container,) = train_job_pod["containers"]
    assert_restricted(train_job_pod["securityContext"], container["securityContext"])
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert "/tmp" in [mount["mountPath"] for mount in container["volumeMounts"]]


def test_sparks_driver_and_executors_are_restricted(spark_pods):
    for pod in spark_pods:
        assert_restricted(pod["podSecurityContext"], pod["securityContext"])


def test_the_user_is_that_of_every_image():
    users = re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE.read_text(encoding="utf-8"), re.MULTILINE)
    assert {*users} - {("0", "0")} == {(str(USER), str(USER))}
