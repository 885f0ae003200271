"""Compiled pipelines as they sit on a cluster: images, user, workspace, secrets, GPUs for training."""

from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict
from kfp.dsl.base_component import BaseComponent
from kfp.kubernetes import kubernetes_executor_config_pb2 as kubernetes
from kfp.kubernetes.common import parse_k8s_parameter_input
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineDeploymentConfig

from watchrank.config import ClusterSettings, PodSettings, TolerationSettings, TrainingPodSettings
from watchrank.kubernetes_pods import USER
from watchrank_components.image import IMAGE

_TRAINING = "exec-train-"
"""What the executors of training components begin with: KFP names them by their functions."""


def placed(pipeline: BaseComponent, settings: ClusterSettings) -> list[dict[str, Any]]:
    """Return the YAML documents of a pipeline for a cluster: its specification and Kubernetes' part of it.

    Args:
        pipeline: what to compile; what it says of a task itself stays.
        settings: laid over every executor, also those of nested pipelines. Secrets go by reference.

    Returns:
        The pipeline specification and the platform specification.
    """
    spec, platform = MessageToDict(pipeline.pipeline_spec), MessageToDict(pipeline.platform_spec)
    configs = _executors(platform)
    for label, executor in spec["deploymentSpec"]["executors"].items():
        if "container" not in executor:
            continue
        training = label.startswith(_TRAINING)
        config = ParseDict(configs.get(label, {}), kubernetes.KubernetesExecutorConfig())
        config.MergeFrom(_pod(settings))
        config.image_pull_policy = settings.image_pull_policy or config.image_pull_policy
        container = executor["container"]
        if container["image"] == IMAGE:
            container["image"] = (training and settings.training_image) or settings.image or IMAGE
        if training:
            config.MergeFrom(_training_pod(settings))
            if resources := MessageToDict(_resources(settings)):
                container["resources"] = container.get("resources", {}) | resources
        configs[label] = MessageToDict(config)
    return [spec, platform]


def _executors(platform: dict[str, Any]) -> dict[str, Any]:
    """Return the place of the executors' configurations in a platform specification; make it."""
    place = platform
    for key in ("platforms", "kubernetes", "deploymentSpec", "executors"):
        place = place.setdefault(key, {})
    return place


def _pod(settings: PodSettings) -> kubernetes.KubernetesExecutorConfig:
    """Return what every task's pod has; Kubeflow 2.17 itself drops its capabilities and sets seccomp."""
    user = kubernetes.SecurityContext(run_as_user=USER, run_as_group=USER, run_as_non_root=True)
    config = kubernetes.KubernetesExecutorConfig(security_context=user)
    if settings.workspace_claim:
        config.pvc_mount.add(
            mount_path=str(settings.workspace_path),
            constant=settings.workspace_claim,
            pvc_name_parameter=parse_k8s_parameter_input(settings.workspace_claim, None),
        )
    for name, keys in settings.secrets.items():
        config.secret_as_env.add(
            secret_name=name,
            secret_name_parameter=parse_k8s_parameter_input(name, None),
            key_to_env=[
                kubernetes.SecretAsEnv.SecretKeyToEnvMap(secret_key=key, env_var=variable)
                for key, variable in keys.items()
            ],
        )
    return config


def _training_pod(settings: TrainingPodSettings) -> kubernetes.KubernetesExecutorConfig:
    config = kubernetes.KubernetesExecutorConfig(
        tolerations=[_toleration(toleration) for toleration in settings.tolerations]
    )
    if settings.node_selector:
        config.node_selector.labels.update(settings.node_selector)
    if settings.shared_memory:
        config.empty_dir_mounts.add(
            volume_name="shm", mount_path="/dev/shm", medium="Memory", size_limit=settings.shared_memory
        )
    return config


def _toleration(settings: TolerationSettings) -> kubernetes.Toleration:
    values = settings.model_dump(exclude={"seconds"})
    return kubernetes.Toleration(**values, toleration_seconds=settings.seconds)


def _resources(
    settings: TrainingPodSettings,
) -> PipelineDeploymentConfig.PipelineContainerSpec.ResourceSpec:
    resources = PipelineDeploymentConfig.PipelineContainerSpec.ResourceSpec(
        resource_cpu_request=settings.cpu,
        resource_cpu_limit=settings.cpu,
        resource_memory_request=settings.memory,
        resource_memory_limit=settings.memory,
    )
    if settings.accelerators:
        resources.accelerator.resource_type = settings.accelerator
        resources.accelerator.resource_count = str(settings.accelerators)
    return resources
