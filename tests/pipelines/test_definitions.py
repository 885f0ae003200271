import inspect

import pytest
import yaml
from kfp import compiler

from watchrank.config import Config
from watchrank_components import candidates, data, monitoring, ranking, run, serving, text
from watchrank_pipelines.catalogue import PIPELINES, for_kubeflow
from watchrank_pipelines.parameters import sections
from watchrank_pipelines.training import SECTIONS

COMPONENTS = {
    member.name: member
    for module in (data, candidates, monitoring, ranking, run, serving, text)
    for member in vars(module).values()
    if hasattr(member, "python_func") and member.python_func.__module__ == module.__name__
}
EFFECTS = {
    "begin",
    "finish",
    "prepare-log",
    "plan",
    "ingest",
    "build-features",
    "open-workspace",
    "evaluate-ranking",
    "export-release",
    "deploy-release",
    "recommend",
    "report-drift",
    "report-skew",
    "roll-back",
}
ONLINE = EFFECTS - {"begin", "finish", "plan", "open-workspace", "evaluate-ranking", "report-drift"}


@pytest.fixture(scope="module")
def specs(tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("compiled"), {}
    for name in PIPELINES:
        compiler.Compiler().compile(for_kubeflow(name), str(folder / f"{name}.yaml"))
        found[name] = next(yaml.safe_load_all((folder / f"{name}.yaml").read_text()))
    return found


def tasks(spec, dag):
    """Yield every task below a graph, with the name of its component; of a group, its own, too."""
    for task in dag["tasks"].values():
        component = spec["components"][task["componentRef"]["name"]]
        yield task["componentRef"]["name"].removeprefix("comp-"), task
        if "dag" in component:
            yield from tasks(spec, component["dag"])


@pytest.mark.parametrize("name", PIPELINES)
def test_every_parameter_has_a_type_a_description_and_but_for_the_workspace_a_default(specs, name):
    parameters, needed = specs[name]["root"]["inputDefinitions"]["parameters"], {"workspace"}
    if name == "retraining":
        needed.add("data")
    for each, parameter in parameters.items():
        assert parameter["parameterType"] in {"STRING", "STRUCT", "NUMBER_INTEGER", "BOOLEAN"}
        assert len(parameter.get("description", "")) > 15, each
        assert ("defaultValue" in parameter) == (each not in needed)


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_says_what_it_is(specs, name):
    info = specs[name]["pipelineInfo"]
    assert info["name"] == f"watchrank-{name}"
    assert info["displayName"] == f"watchrank: {name}"
    assert len(info["description"]) > 30
    assert "Args" not in info["description"]


@pytest.mark.parametrize("name", PIPELINES)
def test_the_settings_of_a_pipeline_are_those_of_the_configuration(specs, name):
    parameters = specs[name]["root"]["inputDefinitions"]["parameters"]
    defaults = {each: parameters[each]["defaultValue"] for each in sections(Config()) if each in parameters}
    ranker = defaults.pop("model", None)
    assert ranker in ("ranking", None)
    assert defaults
    assert Config.model_validate(defaults) == Config()


def test_training_takes_every_section_that_it_has_a_use_for():
    assert {*SECTIONS, "serving", "kubeflow", "cluster"} == {*Config.model_fields, "model"}


@pytest.mark.parametrize("name", PIPELINES)
def test_every_step_has_a_name_for_the_ui_and_runs_in_the_image(specs, name):
    spec = specs[name]
    for _, task in tasks(spec, spec["root"]["dag"]):
        assert task["taskInfo"]["name"][0].isupper()
    for executor in spec["deploymentSpec"]["executors"].values():
        assert executor["container"]["image"] == "watchrank-python:0.1.0"
        assert "pip install" not in " ".join(executor["container"]["command"])


def test_every_component_has_a_place_in_a_pipeline(specs):
    used = {name for spec in specs.values() for name, _ in tasks(spec, spec["root"]["dag"])}
    assert set(COMPONENTS) <= used


@pytest.mark.parametrize("name", PIPELINES)
def test_steps_with_effects_are_never_cached_and_those_over_the_network_are_tried_again(specs, name):
    found = [each for each in tasks(specs[name], specs[name]["root"]["dag"]) if each[0] in COMPONENTS]
    assert found
    for component, task in found:
        assert task["cachingOptions"].get("enableCache", False) == (component not in EFFECTS), component
        policy = task.get("retryPolicy", {})
        assert policy.get("maxRetryCount", 0) == (3 if component in ONLINE else 0), component
        if policy:
            assert float(policy["backoffFactor"]) > 1
            assert policy["backoffDuration"] != "0s"


@pytest.mark.parametrize("name", PIPELINES)
def test_a_run_on_kubeflow_ends_with_its_report_whatever_happens(specs, name):
    top = specs[name]["root"]["dag"]["tasks"]
    assert set(top) == {"exit-handler-1", "finish"}
    assert top["finish"]["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    assert top["finish"]["inputs"]["parameters"]["status"]["taskFinalStatus"]["producerTask"] == (
        "exit-handler-1"
    )


@pytest.mark.parametrize(
    ("name", "alone"),
    [*((each, True) for each in ("feature", "training", "retraining")), ("rollback", False)],
)
def test_a_run_that_writes_begins_by_taking_its_workspace(specs, name, alone):
    dag = specs[name]["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    assert ("begin" in dag) == alone
    waiting = [task for each, task in dag.items() if each != "begin"]
    if alone:
        produced = [str(task["inputs"]["parameters"].get("workspace", "")) for task in waiting]
        assert any("'producerTask': 'begin'" in each for each in produced)
        for task in waiting:
            upstream = set(task.get("dependentTasks", []))
            assert upstream, "every step waits for the workspace"


@pytest.mark.parametrize("component", COMPONENTS.values(), ids=COMPONENTS)
def test_a_component_is_its_imports_and_one_call(component):
    source = inspect.getsource(component.python_func)
    body = source.split('"""')[2].strip().splitlines()
    assert len(body) < 30


def test_compilation_is_deterministic(specs, tmp_path):
    compiler.Compiler().compile(for_kubeflow("training"), str(tmp_path / "again.yaml"))
    assert next(yaml.safe_load_all((tmp_path / "again.yaml").read_text())) == specs["training"]
