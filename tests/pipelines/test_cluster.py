import pytest
import yaml
from google.protobuf.json_format import ParseDict
from kfp import compiler, dsl, kubernetes
from kfp.kubernetes.kubernetes_executor_config_pb2 import KubernetesExecutorConfig
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineDeploymentConfig, PipelineSpec, PlatformSpec

from watchrank.config import ClusterSettings, Config, LaunchSettings
from watchrank.errors import InputError
from watchrank_components.image import IMAGE
from watchrank_pipelines import cli
from watchrank_pipelines.catalogue import PIPELINES, for_kubeflow
from watchrank_pipelines.cluster import placed

CLUSTER = ClusterSettings.model_validate(
    {
        "image": "registry/watchrank-python:1",
        "training_image": "registry/watchrank-python-gpu:1",
        "image_pull_policy": "IfNotPresent",
        "workspace_claim": "workspace",
        "workspace_path": "/mnt/workspace",
        "secrets": {"s3": {"id": "AWS_ACCESS_KEY_ID", "key": "AWS_SECRET_ACCESS_KEY"}},
        "cpu": "8",
        "memory": "32Gi",
        "shared_memory": "4Gi",
        "accelerators": 2,
        "node_selector": {"cloud/accelerator": "h200"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    }
)
TRAINING = {"exec-train-ranking", "exec-train-candidates", "exec-train-text"}


def executors(documents):
    """Return the containers and the Kubernetes configurations of a compiled pipeline, as messages."""
    spec, *platform = documents
    ParseDict(spec, PipelineSpec())
    containers = ParseDict(spec["deploymentSpec"], PipelineDeploymentConfig()).executors
    configs = {}
    for document in platform:
        ParseDict(document, PlatformSpec())
        found = document["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        configs = {label: ParseDict(config, KubernetesExecutorConfig()) for label, config in found.items()}
    return {label: executor.container for label, executor in containers.items()}, configs


@pytest.mark.parametrize("pipeline", map(for_kubeflow, PIPELINES), ids=list(PIPELINES))
def test_default_settings_change_the_user_alone(pipeline, tmp_path):
    compiler.Compiler().compile(pipeline, str(tmp_path / "plain.yaml"))
    spec, platform = placed(pipeline, ClusterSettings())
    (plain, *_) = yaml.safe_load_all((tmp_path / "plain.yaml").read_text())
    assert spec == plain
    configs = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    user = {"runAsUser": "1000", "runAsGroup": "1000", "runAsNonRoot": True}
    assert configs == {label: {"securityContext": user} for label in spec["deploymentSpec"]["executors"]}


@pytest.mark.parametrize("pipeline", map(for_kubeflow, PIPELINES), ids=list(PIPELINES))
def test_every_task_has_the_image_the_workspace_and_the_secrets_by_name(pipeline):
    containers, configs = executors(placed(pipeline, CLUSTER))
    assert set(configs) == set(containers)
    for label, container in containers.items():
        training = label.startswith("exec-train-")
        assert container.image == (CLUSTER.training_image if training else CLUSTER.image)
        config = configs[label]
        (mount,) = config.pvc_mount
        claim = mount.pvc_name_parameter.runtime_value.constant.string_value
        assert (mount.mount_path, claim, mount.constant) == ("/mnt/workspace", "workspace", "workspace")
        (secret,) = config.secret_as_env
        assert secret.secret_name_parameter.runtime_value.constant.string_value == secret.secret_name == "s3"
        assert {pair.secret_key: pair.env_var for pair in secret.key_to_env} == CLUSTER.secrets["s3"]
        assert config.image_pull_policy == "IfNotPresent"
        user = config.security_context
        assert (user.run_as_user, user.run_as_group, user.run_as_non_root) == (1000, 1000, True)
        assert not container.env


def test_training_tasks_alone_have_the_accelerators_and_their_nodes():
    containers, configs = executors(placed(for_kubeflow("training"), CLUSTER))
    assert set(containers) > TRAINING
    for label, container in containers.items():
        resources, config = container.resources, configs[label]
        if label not in TRAINING:
            assert not container.HasField("resources")
            assert not config.tolerations
            assert not config.empty_dir_mounts
            assert not config.node_selector.labels
            continue
        accelerator = resources.accelerator
        assert (accelerator.resource_type, accelerator.resource_count) == ("nvidia.com/gpu", "2")
        assert resources.resource_cpu_request == resources.resource_cpu_limit == "8"
        assert resources.resource_memory_request == resources.resource_memory_limit == "32Gi"
        assert dict(config.node_selector.labels) == {"cloud/accelerator": "h200"}
        (toleration,) = config.tolerations
        assert (toleration.key, toleration.operator, toleration.effect) == (
            "nvidia.com/gpu",
            "Exists",
            "NoSchedule",
        )
        (shm,) = config.empty_dir_mounts
        assert (shm.mount_path, shm.medium, shm.size_limit) == ("/dev/shm", "Memory", "4Gi")


def test_nested_pipelines_importers_and_what_a_task_says_itself_are_kept():
    @dsl.component(base_image=IMAGE, install_kfp_package=False)
    def train_nested(data: dsl.Input[dsl.Dataset]):
        pass

    @dsl.component(base_image="busybox-python")
    def foreign():
        pass

    @dsl.pipeline(name="inner")
    def inner():
        data = dsl.importer(artifact_uri="s3://bucket/data", artifact_class=dsl.Dataset)
        task = train_nested(data=data.output)
        kubernetes.add_node_selector(task, "zone", "a")
        kubernetes.mount_pvc(task, "cache", "/cache")

    @dsl.pipeline(name="outer")
    def outer():
        inner()
        foreign()

    containers, configs = executors(placed(outer, CLUSTER))
    assert containers["exec-train-nested"].image == CLUSTER.training_image
    assert containers["exec-foreign"].image == "busybox-python"
    assert [mount.constant for mount in configs["exec-train-nested"].pvc_mount] == ["cache", "workspace"]
    labels = configs["exec-train-nested"].node_selector.labels
    assert dict(labels) == {"zone": "a", "cloud/accelerator": "h200"}
    assert "exec-importer" not in configs
    assert len(placed(outer, ClusterSettings())) == 2


def test_what_a_pipeline_says_of_the_platform_is_kept():
    @dsl.component(base_image="busybox-python")
    def foreign():
        pass

    own = dsl.PipelineConfig(workspace=dsl.WorkspaceConfig(size="1Gi"))

    @dsl.pipeline(name="small", pipeline_config=own)
    def small():
        foreign()

    for settings in (ClusterSettings(), CLUSTER):
        _, platform = placed(small, settings)
        assert platform["platforms"]["kubernetes"]["pipelineConfig"]["workspace"]["size"] == "1Gi"


def test_compile_takes_the_cluster_of_the_settings(tmp_path, monkeypatch):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"cluster": {"image": "registry/watchrank-python:2"}}))
    words = ["compile", "--output", str(tmp_path), "--config", str(config), "--set=cluster.accelerators=1"]
    monkeypatch.setattr("sys.argv", ["watchrank-pipelines", *words])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    written = [*yaml.safe_load_all((tmp_path / "watchrank-training.yaml").read_text())]
    settings = ClusterSettings(image="registry/watchrank-python:2", accelerators=1)
    assert written == placed(for_kubeflow("training"), settings)


@pytest.mark.parametrize(
    ("section", "wrong"),
    [
        ("cluster", {"memory": "much"}),
        ("cluster", {"workspace_claim": "Not A Name"}),
        ("cluster", {"secrets": {"s3": {"key": "AWS_SECRET=s3cr3t"}}}),
        ("cluster", {"secrets": {"s3": "AKIAEXAMPLE"}}),
        ("cluster", {"accelerators": -1}),
        ("launch", {"nodes": 0}),
        ("launch", {"processes": 4, "accelerators": 2}),
        ("spark", {"driver_memory": "2Gi"}),
    ],
)
def test_wrong_settings_are_refused(section, wrong, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({section: wrong}))
    with pytest.raises(InputError, match=f"{section}") as told:
        Config.load(file)
    assert not any(secret in str(told.value) for secret in ("s3cr3t", "AKIA"))


def test_processes_need_no_accelerator():
    assert LaunchSettings(processes=4).accelerators == 0
