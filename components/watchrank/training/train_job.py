"""Training on several nodes: a TrainJob of Kubeflow Trainer v2 that runs the worker under torchrun.

The runtime `torch-distributed` starts a pod a node and tells torchrun of the others by PET_* variables.
"""

from typing import Any

from watchrank.config import LaunchSettings, TolerationSettings
from watchrank.kubernetes_jobs import Kind, Status, run_job
from watchrank.kubernetes_pods import (
    RESTRICTED_CONTAINER,
    RESTRICTED_POD,
    require_shared,
    secret_variables,
    workspace_volume,
)
from watchrank.training.jobs import TrainingJob

_NODE = "node"
"""What Kubeflow's runtimes call the pods that train, and their container."""


def run_train_job(job: TrainingJob, settings: LaunchSettings) -> None:
    """Train on `settings.nodes` nodes; one that trains the same already is taken up.

    Raises:
        InputError: an image or a claim is not set, or dataset or output is not on the workspace's volume.
        JobError: the TrainJob failed or took too long, or Kubernetes refused a call.
    """
    require_shared(settings, "launch", job.dataset, job.output, *filter(None, [job.warm_start]))
    run_job(TRAIN_JOB, manifest(job, settings), settings)


def manifest(job: TrainingJob, settings: LaunchSettings) -> dict[str, Any]:
    """Return the TrainJob (`kubeflow_trainer_api.models.TrainerV1alpha1TrainJob`)."""
    trainer = {
        "image": settings.image,
        "command": ["torchrun"],
        "args": ["-m", "watchrank.training.worker", job.model_dump_json()],
        "numNodes": settings.nodes,
        "numProcPerNode": settings.processes,
        "env": secret_variables(settings),
        "resourcesPerNode": _resources(settings),
    }
    node = {"name": _NODE, "template": {"spec": {"template": {"spec": _pod(settings)}}}}
    patch = {"template": {"spec": {"replicatedJobs": [node]}}}
    return {
        "apiVersion": f"{TRAIN_JOB.group}/{TRAIN_JOB.version}",
        "kind": TRAIN_JOB.name,
        "metadata": {"name": f"watchrank-{job.model}-{job.key}"},
        "spec": {
            "runtimeRef": {"name": settings.runtime},
            "activeDeadlineSeconds": int(settings.timeout_seconds),
            "trainer": trainer,
            "runtimePatches": [{"manager": "watchrank.training/launch", "trainingRuntimeSpec": patch}],
        },
    }


def _resources(settings: LaunchSettings) -> dict[str, dict[str, str]]:
    accelerators = str(settings.accelerators or "")
    amounts = {"cpu": settings.cpu, "memory": settings.memory, settings.accelerator: accelerators}
    given = {name: amount for name, amount in amounts.items() if amount}
    return {"requests": given, "limits": given} if given else {}


def _pod(settings: LaunchSettings) -> dict[str, Any]:
    """Return what is laid over the runtime's pods."""
    volume, mount = workspace_volume(settings)
    volumes: list[dict[str, Any]] = [volume, {"name": "tmp", "emptyDir": {}}]
    mounts: list[dict[str, Any]] = [mount, {"name": "tmp", "mountPath": "/tmp"}]
    if settings.shared_memory:
        memory = {"medium": "Memory", "sizeLimit": settings.shared_memory}
        volumes.append({"name": "shm", "emptyDir": memory})
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})
    locked = {**RESTRICTED_CONTAINER, "readOnlyRootFilesystem": True}
    node = {"name": _NODE, "volumeMounts": mounts, "securityContext": locked}
    pod: dict[str, Any] = {"volumes": volumes, "containers": [node], "securityContext": RESTRICTED_POD}
    if settings.node_selector:
        pod["nodeSelector"] = settings.node_selector
    if settings.tolerations:
        pod["tolerations"] = [_toleration(toleration) for toleration in settings.tolerations]
    return pod


def _toleration(settings: TolerationSettings) -> dict[str, Any]:
    values = settings.model_dump(exclude={"seconds"}) | {"tolerationSeconds": settings.seconds}
    return {name: value for name, value in values.items() if value not in ("", None)}


def _status(found: dict[str, Any]) -> Status:
    """Read the conditions of a TrainJob."""
    conditions = found.get("status", {}).get("conditions", [])
    held = {condition["type"]: condition for condition in conditions if condition["status"] == "True"}
    if "Complete" in held:
        return Status("succeeded", "complete")
    if "Failed" in held:
        return Status("failed", held["Failed"].get("message") or held["Failed"]["reason"])
    return Status("running", "suspended" if "Suspended" in held else "not complete")


TRAIN_JOB = Kind(
    name="TrainJob",
    group="trainer.kubeflow.org",
    version="v1alpha1",
    plural="trainjobs",
    pods=(
        "jobset.sigs.k8s.io/jobset-name={name},"
        f"jobset.sigs.k8s.io/replicatedjob-name={_NODE},batch.kubernetes.io/job-completion-index=0"
    ),
    container=_NODE,
    status=_status,
)
