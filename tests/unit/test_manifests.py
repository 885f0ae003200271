"""The Kubernetes manifests, as kustomize renders them: valid, closed, and true to the code."""

import json
import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import click
import cloudcoil.models.prometheus_operator.v1 as prometheus_operator
import kubernetes_validate
import pytest
import typer.main
import yaml

from watchrank.cli import app
from watchrank.config import Config
from watchrank.deployment.administration import HEADER, RESTRICTED
from watchrank.deployment.server_environment import read_environment
from watchrank.serving.client import CHANNEL
from watchrank.serving.metrics import Metrics
from watchrank.serving.request_log import RequestLog

FOLDER = Path(__file__).parents[2] / "infra" / "kubernetes"
OVERLAYS = ["local", "production"]
KUBERNETES = ["1.27", "1.32", "1.37"]
OPERATOR = "monitoring.coreos.com/v1"
WORKLOADS = ("Deployment", "StatefulSet")
SERVERS = {"watchrank-triton", "watchrank-http", "watchrank-redis"}

RUNS = {
    "task": {"pipelines.kubeflow.org/v2_component": "true"},
    "training": {"jobset.sigs.k8s.io/jobset-name": "watchrank-1"},
    "spark": {"sparkoperator.k8s.io/launched-by-spark-operator": "true"},
}
"""The labels that Kubeflow Pipelines, Trainer (JobSet) and the Spark Operator give the pods they start."""

TRITON_METRICS = {
    "nv_gpu_memory_used_bytes",
    "nv_gpu_utilization",
    "nv_inference_pending_request_count",
    "nv_inference_queue_duration_us",
    "nv_inference_request_duration_us",
    "nv_inference_request_failure",
    "nv_inference_request_success",
}
"""Those used here, from the server's documentation (user guide, metrics)."""


@pytest.fixture(scope="module")
def rendered():
    """The manifests of each overlay."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        if os.environ.get("CI") == "true":
            pytest.fail("there is no kubectl; install kubernetes-client")
        pytest.skip("there is no kubectl")
    return {overlay: render(kubectl, overlay) for overlay in OVERLAYS}


def render(kubectl, overlay):
    command = [kubectl, "kustomize", FOLDER / "overlays" / overlay]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(params=OVERLAYS)
def manifests(rendered, request):
    return rendered[request.param]


@pytest.fixture
def production(rendered):
    return rendered["production"]


def of_kind(manifests, *kinds):
    return [each for each in manifests if each["kind"] in kinds]


def named(manifests, kind, name):
    (found,) = [each for each in of_kind(manifests, kind) if each["metadata"]["name"] == name]
    return found


def pods(manifests):
    return {each["metadata"]["name"]: each["spec"]["template"] for each in of_kind(manifests, *WORKLOADS)}


def containers(manifests):
    """Return each container by `pod/container`, init containers too."""
    return {
        f"{pod}/{each['name']}": each
        for pod, template in pods(manifests).items()
        for each in [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]
    }


def walk(value):
    """Yield every mapping inside a value."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from walk(each)


def selects(selector, labels):
    assert set(selector) <= {"matchLabels", "matchExpressions"}, "this test reads no other selectors"
    expressions = selector.get("matchExpressions", [])
    assert {each["operator"] for each in expressions} <= {"Exists"}, "this test reads no other operators"
    wanted = selector.get("matchLabels", {}).items()
    return wanted <= labels.items() and all(each["key"] in labels for each in expressions)


@pytest.mark.parametrize("version", KUBERNETES)
def test_every_manifest_fits_the_schema_of_its_kind(manifests, version):
    for each in manifests:
        if each["apiVersion"] != OPERATOR:
            kubernetes_validate.validate(each, version, strict=True)


def test_monitoring_fits_the_schemas_of_the_prometheus_operator(production):
    found = [each for each in production if each["apiVersion"] == OPERATOR]
    assert {each["kind"] for each in found} == {"ServiceMonitor", "PrometheusRule"}
    for each in found:
        getattr(prometheus_operator, each["kind"]).model_validate(each, extra="forbid")


def test_names_are_unique_and_in_the_one_namespace(manifests):
    counts = Counter((each["kind"], each["metadata"]["name"]) for each in manifests)
    assert max(counts.values()) == 1
    for each in manifests:
        assert each["kind"] == "Namespace" or each["metadata"]["namespace"] == "watchrank", each["metadata"]


def test_the_namespace_enforces_pod_security(manifests):
    (namespace,) = of_kind(manifests, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_every_pod_is_locked_down(manifests):
    assert set(pods(manifests)) - {"watchrank-postgres"} == SERVERS
    for name, template in pods(manifests).items():
        context = template["spec"]["securityContext"]
        assert context["runAsNonRoot"], name
        assert context["runAsUser"] > 0, name
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert template["spec"]["automountServiceAccountToken"] is False, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(template["spec"]), name
        assert template["metadata"]["labels"]["sidecar.istio.io/inject"] == "false", name
    for name, container in containers(manifests).items():
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, name


def test_every_container_has_resources_and_a_version(manifests):
    for name, container in containers(manifests).items():
        for kind in ("requests", "limits"):
            assert {"cpu", "memory"} <= set(container["resources"][kind]), name
        assert re.fullmatch(r"[^:@]+:(?!latest$)[\w.-]+", container["image"]), name


def test_every_server_has_probes(manifests):
    for name, container in containers(manifests).items():
        if "ports" in container:
            assert {"livenessProbe", "readinessProbe"} <= set(container), name
    triton = containers(manifests)["watchrank-triton/triton"]
    assert triton["startupProbe"]["httpGet"]["path"] == "/v2/health/ready"
    assert triton["livenessProbe"]["httpGet"]["path"] == "/v2/health/live"


def test_no_manifest_holds_a_secret(manifests):
    for each in of_kind(manifests, "Secret"):
        assert not {"data", "stringData"} & set(each), each["metadata"]["name"]
    secret = re.compile(r"password|token|secret|_key$", re.IGNORECASE)
    for name, container in containers(manifests).items():
        for variable in container.get("env", []):
            if secret.search(variable["name"]):
                assert set(variable["valueFrom"]) == {"secretKeyRef"}, f"{name}: {variable['name']}"


def test_every_name_that_is_referred_to_is_there_or_is_to_be_brought(rendered):
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    brought = set(re.findall(r"^\| (\w+) `([\w-]+)` \|", readme, re.MULTILINE))
    used = {overlay: set(references(manifests)) for overlay, manifests in rendered.items()}
    assert brought <= set.union(*used.values())
    for overlay, manifests in rendered.items():
        there = {(each["kind"], each["metadata"]["name"]) for each in manifests}
        assert used[overlay] - there - brought == set()
        assert not brought & there


def references(manifests):
    """Yield the kind and the name of what the pods, the monitors and the autoscaler refer to."""
    kinds = {
        "secretKeyRef": ("Secret", "name"),
        "secretRef": ("Secret", "name"),
        "secret": ("Secret", "secretName"),
        "credentials": ("Secret", "name"),
        "configMapKeyRef": ("ConfigMap", "name"),
        "configMapRef": ("ConfigMap", "name"),
        "configMap": ("ConfigMap", "name"),
        "persistentVolumeClaim": ("PersistentVolumeClaim", "claimName"),
    }
    for each in walk(manifests):
        for key, (kind, name) in kinds.items():
            if key in each:
                yield kind, each[key][name]
        if "serviceAccountName" in each:
            yield "ServiceAccount", each["serviceAccountName"]
        for key in ("roleRef", "scaleTargetRef"):
            if key in each:
                yield each[key]["kind"], each[key]["name"]


def test_volumes_that_are_mounted_are_there(manifests):
    for name, template in pods(manifests).items():
        spec = template["spec"]
        (workload,) = [each for each in of_kind(manifests, *WORKLOADS) if each["metadata"]["name"] == name]
        claims = [each["metadata"] for each in workload["spec"].get("volumeClaimTemplates", [])]
        there = [*spec.get("volumes", []), *claims]
        mounted = {mount["name"] for each in spec["containers"] for mount in each["volumeMounts"]}
        assert mounted == {volume["name"] for volume in there}, name


def test_every_pod_is_closed_but_for_the_ports_that_are_named(manifests):
    policies = [each["spec"] for each in of_kind(manifests, "NetworkPolicy")]
    for name, template in pods(manifests).items():
        mine = [each for each in policies if selects(each["podSelector"], template["metadata"]["labels"])]
        denied = [each for each in mine if not each.get("ingress") and not each.get("egress")]
        assert [each["policyTypes"] for each in denied] == [["Ingress", "Egress"]], name
        opened = {port["port"] for each in mine for rule in each.get("ingress", []) for port in rule["ports"]}
        exposed = {
            port["containerPort"]
            for container in template["spec"]["containers"]
            for port in container.get("ports", [])
        }
        assert opened, name
        assert opened <= exposed, name
        assert all(rule.get("from") for each in mine for rule in each.get("ingress", [])), name


def test_who_may_ask_whom(manifests):
    labels = RUNS | {name: template["metadata"]["labels"] for name, template in pods(manifests).items()}
    ports = {
        name: {
            port["containerPort"] for each in template["spec"]["containers"] for port in each.get("ports", [])
        }
        for name, template in pods(manifests).items()
    }
    asked = {
        (asker, server, port)
        for asker in labels
        for server in pods(manifests)
        for port in ports[server]
        if may_ask(manifests, labels[asker], labels[server], port)
    }
    registry = {("task", "watchrank-postgres", 5432), ("spark", "watchrank-postgres", 5432)}
    assert asked == {
        ("watchrank-http", "watchrank-triton", 8001),
        ("watchrank-http", "watchrank-redis", 6379),
        ("task", "watchrank-triton", 8001),
        ("task", "watchrank-redis", 6379),
        ("spark", "watchrank-redis", 6379),
        *(registry if "watchrank-postgres" in ports else ()),
    }


def test_nodes_of_one_kind_of_job_reach_each_other(manifests):
    kinds = ("training", "spark")
    asked = {(a, b) for a in RUNS for b in kinds if may_ask(manifests, RUNS[a], RUNS[b], 29_500)}
    let_in = {
        (a, b)
        for a in RUNS
        for b in kinds
        if any(names(rule["from"], RUNS[a]) for rule in rules_for(manifests, RUNS[b], "ingress"))
    }
    assert asked == let_in == {(kind, kind) for kind in kinds}


def test_runs_reach_what_is_outside_by_a_few_ports(manifests):
    reached = {
        name: {
            port
            for port in (22, 80, 443, 5432, 6443, 8888)
            if any(not rule.get("to") and has(rule, port) for rule in rules_for(manifests, labels, "egress"))
        }
        for name, labels in RUNS.items()
    }
    assert reached == {"task": {443, 5432, 6443}, "training": {443}, "spark": {443, 5432, 6443}}


def may_ask(manifests, asker, asked, port):
    """Return whether the policies of both sides let a pod of this namespace connect to another."""
    out = [
        rule
        for rule in rules_for(manifests, asker, "egress")
        if not rule.get("to") or names(rule["to"], asked)
    ]
    into = [rule for rule in rules_for(manifests, asked, "ingress") if names(rule["from"], asker)]
    return any(has(rule, port) for rule in out) and any(has(rule, port) for rule in into)


def rules_for(manifests, labels, direction):
    return [
        rule
        for each in of_kind(manifests, "NetworkPolicy")
        if selects(each["spec"]["podSelector"], labels)
        for rule in each["spec"].get(direction, [])
    ]


def names(peers, labels):
    return any("podSelector" in each and selects(each["podSelector"], labels) for each in peers)


def has(rule, port):
    return "ports" not in rule or port in [each["port"] for each in rule["ports"]]


def test_triton_is_administered_over_no_service(manifests):
    ports = {
        port["name"]: port["port"]
        for port in named(manifests, "Service", "watchrank-triton")["spec"]["ports"]
    }
    assert ports == {"grpc": 8001, "metrics": 8002}


def test_services_reach_pods(manifests):
    for service in of_kind(manifests, "Service"):
        name, spec = service["metadata"]["name"], service["spec"]
        template = pods(manifests)[name]
        assert spec["selector"].items() <= template["metadata"]["labels"].items(), name
        ports = {p["name"] for c in template["spec"]["containers"] for p in c.get("ports", [])}
        assert {port["targetPort"] for port in spec["ports"]} <= ports, name


def test_requests_are_spread_over_the_pods_of_triton(manifests):
    assert named(manifests, "Service", "watchrank-triton")["spec"]["clusterIP"] == "None"
    assert dict(CHANNEL)["grpc.lb_policy_name"] == "round_robin"


def test_the_workspace_is_on_every_node_in_production(rendered):
    modes = {
        overlay: named(manifests, "PersistentVolumeClaim", "watchrank-workspace")["spec"]["accessModes"]
        for overlay, manifests in rendered.items()
    }
    assert modes == {"local": ["ReadWriteOnce"], "production": ["ReadWriteMany"]}


def test_roles_have_the_least_rights(manifests):
    for role in of_kind(manifests, "Role", "ClusterRole"):
        for rule in role["rules"]:
            assert "*" not in {*rule["resources"], *rule["apiGroups"], *rule["verbs"]}
            assert not {"pods/exec", "roles", "rolebindings", "serviceaccounts"} & set(rule["resources"])
            assert "secrets" not in rule["resources"] or (rule["verbs"], len(rule["resourceNames"])) == (
                ["get"],
                1,
            )
    writers = {
        role["metadata"]["name"]: {
            resource for rule in role["rules"] if writes(rule) for resource in rule["resources"]
        }
        for role in of_kind(manifests, "Role", "ClusterRole")
    }
    assert {name: resources for name, resources in writers.items() if resources} == {
        "watchrank-pipelines": {"trainjobs", "sparkapplications", "workflowtaskresults"},
        "watchrank-spark": {"pods", "services", "configmaps", "persistentvolumeclaims"},
    }


def writes(rule):
    return not set(rule["verbs"]) <= {"get", "list", "watch"}


def test_runs_may_start_and_follow_jobs(manifests):
    (rules,) = [
        each["rules"]
        for each in of_kind(manifests, "Role")
        if each["metadata"]["name"] == "watchrank-pipelines"
    ]
    allowed = {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    jobs = {("trainer.kubeflow.org", "trainjobs"), ("sparkoperator.k8s.io", "sparkapplications")}
    assert {(*job, verb) for job in jobs for verb in ("create", "get", "list", "watch", "delete")} <= allowed
    assert {("", "pods", "list"), ("", "pods", "watch"), ("", "pods/log", "get")} <= allowed


def test_only_accounts_with_a_role_have_a_token(manifests):
    bound = {
        subject["name"]
        for each in of_kind(manifests, "RoleBinding")
        for subject in each["subjects"]
        if subject.get("namespace", "watchrank") == "watchrank"
    }
    accounts = {each["metadata"]["name"]: each for each in of_kind(manifests, "ServiceAccount")}
    assert bound == {"watchrank-pipelines", "watchrank-spark"}
    for name, account in accounts.items():
        assert account.get("automountServiceAccountToken", True) is (name in bound), name


@pytest.mark.parametrize(
    ("container", "command"), [("watchrank-triton/follow", "follow"), ("watchrank-http/http", "serve-http")]
)
def test_commands_are_those_of_the_command_line(manifests, container, command):
    found = containers(manifests)[container]
    assert found["command"] == ["watchrank"]
    assert found["args"][0] == command
    values = {variable["name"] for variable in found.get("env", [])}
    for source in found.get("envFrom", []):
        if "configMapRef" in source:
            values |= set(named(manifests, "ConfigMap", source["configMapRef"]["name"])["data"])
    assert set(re.findall(r"\$\((\w+)\)", " ".join(found["args"]))) <= values
    parsed = parse(found["args"])
    Config.load(None, parsed["override"])
    assert parsed["workspace"] == Path("/work")


def parse(arguments):
    """Return the options as the real command reads them; an unknown one raises."""
    group = typer.main.get_command(app)
    name, *options = arguments
    with click.Context(group) as parent:
        return group.commands[name].make_context(name, options, parent=parent).params


def test_the_settings_of_the_http_service_are_settings(manifests, tmp_path):
    container = containers(manifests)["watchrank-http/http"]
    mounts = {mount["name"]: Path(mount["mountPath"]) for mount in container["volumeMounts"]}
    (volume,) = [v for v in pods(manifests)["watchrank-http"]["spec"]["volumes"] if v["name"] == "settings"]
    data = named(manifests, "ConfigMap", volume["configMap"]["name"])["data"]
    file = parse(container["args"])["config"]
    assert file.parent == mounts["settings"]
    (tmp_path / file.name).write_text(data[file.name])
    settings = Config.load(tmp_path / file.name)
    assert settings.serving.token_file.parent == mounts["token"]
    assert settings.serving.port == container["ports"][0]["containerPort"]
    assert settings.deployment.grpc_url == "watchrank-triton:8001"


def test_triton_loads_models_for_the_key_alone(manifests):
    triton, follow = (containers(manifests)[f"watchrank-triton/{name}"] for name in ("triton", "follow"))
    assert "--model-control-mode=explicit" in triton["args"]
    groups = ",".join(RESTRICTED)
    for option in ("grpc-restricted-protocol", "http-restricted-api"):
        assert f"--{option}={groups}:{HEADER}=$(ADMIN_KEY)" in triton["args"]
    (key,) = [each["valueFrom"]["secretKeyRef"] for each in triton["env"] if each["name"] == "ADMIN_KEY"]
    (volume,) = [v for v in pods(manifests)["watchrank-triton"]["spec"]["volumes"] if v["name"] == "admin"]
    (mount,) = [each for each in follow["volumeMounts"] if each["name"] == "admin"]
    assert volume["secret"]["secretName"] == key["name"]
    settings = Config.load(None, parse(follow["args"])["override"])
    assert settings.deployment.admin_key_file == Path(mount["mountPath"]) / key["key"]


def test_the_options_of_triton_are_those_of_its_release(manifests, triton_venv):
    triton = containers(manifests)["watchrank-triton/triton"]
    environment = read_environment(triton_venv)
    assert "24.10" in triton["image"], "the local server is of this release"
    command = [environment.tritonserver, "--help"]
    told = subprocess.run(
        command,
        env=environment.variables(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    ).stdout
    known = set(re.findall(r"^\s*(--[\w-]+)", told, re.MULTILINE))
    assert {option.partition("=")[0] for option in triton["args"]} <= known


def test_triton_and_follow_share_the_model_repository(manifests):
    triton, follow = (containers(manifests)[f"watchrank-triton/{name}"] for name in ("triton", "follow"))
    paths = {
        mount["mountPath"]
        for each in (triton, follow)
        for mount in each["volumeMounts"]
        if mount["name"] == "model-repository"
    }
    assert paths == {"/work/model_repository"}
    assert "--model-repository=/work/model_repository" in triton["args"]


def test_production_scales_by_the_queue_on_gpus(production):
    (scaler,) = of_kind(production, "HorizontalPodAutoscaler")
    (metric,) = scaler["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] in {rule.get("record") for rule in rules(production)}
    assert scaler["spec"]["minReplicas"] > 1
    assert containers(production)["watchrank-triton/triton"]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_in_production_one_pod_at_most_is_taken_away(production):
    budgets = {each["metadata"]["name"]: each["spec"] for each in of_kind(production, "PodDisruptionBudget")}
    assert set(budgets) == {"watchrank-triton", "watchrank-http"}
    for name, budget in budgets.items():
        assert budget["maxUnavailable"] == 1
        assert selects(budget["selector"], pods(production)[name]["metadata"]["labels"])


def test_prometheus_finds_the_services(production):
    for monitor in of_kind(production, "ServiceMonitor"):
        service = named(production, "Service", monitor["metadata"]["name"])
        assert selects(monitor["spec"]["selector"], service["metadata"]["labels"])
        ports = {port["name"]: port["targetPort"] for port in service["spec"]["ports"]}
        (endpoint,) = monitor["spec"]["endpoints"]
        policy = named(production, "NetworkPolicy", monitor["metadata"]["name"])["spec"]
        scraped = ports[endpoint["port"]]
        (number,) = [
            port["containerPort"]
            for container in pods(production)[monitor["metadata"]["name"]]["spec"]["containers"]
            for port in container.get("ports", [])
            if port["name"] == scraped
        ]
        monitoring = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
        let_in = [
            port["port"] for rule in policy["ingress"] if monitoring in rule["from"] for port in rule["ports"]
        ]
        assert number in let_in


def test_alerts_say_what_to_do(production):
    for rule in rules(production):
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("critical", "warning")
            assert rule["annotations"]["summary"].endswith(".")


def test_alerts_and_dashboard_read_metrics_that_exist(production, tmp_path):
    known = TRITON_METRICS | exposed(tmp_path)
    known |= {rule["record"] for rule in rules(production) if "record" in rule}
    (dashboard,) = [
        json.loads(text)
        for each in of_kind(production, "ConfigMap")
        if each["metadata"].get("labels", {}).get("grafana_dashboard") == "1"
        for text in each["data"].values()
    ]
    shown = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    read = {
        name
        for expression in [*(rule["expr"] for rule in rules(production)), *shown]
        for name in re.findall(r"\b(?:watchrank|nv)_\w+", expression)
    }
    assert read - known == set()
    assert read >= TRITON_METRICS


def exposed(folder):
    """Return the names of the series of the HTTP service."""
    suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
    registry = Metrics(RequestLog(folder, 1.0)).registry
    return {f"{each.name}{suffix}" for each in registry.collect() for suffix in suffixes[each.type]}


def rules(manifests):
    return [
        rule
        for each in of_kind(manifests, "PrometheusRule")
        for group in each["spec"]["groups"]
        for rule in group["rules"]
    ]
