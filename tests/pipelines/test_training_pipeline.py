import inspect
import json

import pytest
import yaml
from kfp import compiler
from kfp.dsl import Dataset, Metrics, Model

from watchrank.config import Config
from watchrank.ingestion import ingest
from watchrank.workspace import Workspace
from watchrank_components import candidates, data, monitoring, ranking, serving, spark, text
from watchrank_pipelines.local import run_training
from watchrank_pipelines.training import training_pipeline

COMPONENTS = [
    member
    for module in (data, candidates, monitoring, ranking, serving, text)
    for member in vars(module).values()
    if hasattr(member, "python_func") and member.python_func.__module__ == module.__name__
]


SECTIONS = set(Config.model_fields) - {"serving", "kubeflow", "cluster", "launch", "spark"}


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    target = tmp_path_factory.mktemp("compiled") / "training.yaml"
    compiler.Compiler().compile(training_pipeline, str(target))
    return next(yaml.safe_load_all(target.read_text()))


def test_every_parameter_has_a_type_a_description_and_but_for_the_workspace_a_default(spec):
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    assert set(parameters) > SECTIONS
    for name, parameter in parameters.items():
        assert parameter["parameterType"] in {"STRING", "STRUCT"}
        assert parameter.get("description"), name
        assert "defaultValue" in parameter or name == "workspace"


def test_the_settings_of_the_pipeline_are_those_of_the_configuration(spec):
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    defaults = {name: parameters[name]["defaultValue"] for name in SECTIONS}
    assert Config.model_validate(defaults) == Config()


def test_every_task_has_a_name_for_the_ui_and_runs_in_the_image(spec):
    tasks = spec["root"]["dag"]["tasks"]
    assert len(tasks) == len(COMPONENTS) == 18
    assert all(task["taskInfo"]["name"][0].isupper() for task in tasks.values())
    executors = spec["deploymentSpec"]["executors"].values()
    assert all("pip install" not in " ".join(e["container"]["command"]) for e in executors)


def test_compilation_is_deterministic(spec, tmp_path):
    compiler.Compiler().compile(training_pipeline, str(tmp_path / "again.yaml"))
    assert next(yaml.safe_load_all((tmp_path / "again.yaml").read_text())) == spec


@pytest.mark.parametrize(
    "component", [*COMPONENTS, spark.ingest_on_spark, spark.build_features_on_spark], ids=lambda c: c.name
)
def test_a_component_is_its_imports_and_one_call(component):
    source = inspect.getsource(component.python_func)
    body = source.split('"""')[2].strip().splitlines()
    assert len(body) < 30


def test_logs_become_answers_of_triton(prepared, triton_venv, repository, tmp_path):
    reports = run_training(
        prepared.config,
        tmp_path / "work",
        data=None,
        source="own",
        feature_repo=repository / "feature_repo",
        triton_venv=triton_venv,
    )
    results = json.loads((reports / "metrics.json").read_text())
    assert set(results["models"]) == {"ranker", "video mean", "global mean"}
    assert 0.5 < results["truth"]["sum_ratio"] < 2
    towers = json.loads((reports / "candidate_metrics.json").read_text())["models"]
    assert towers["tower"]["recall@100"] > towers["popularity"]["recall@100"]
    assert "The challenger passes; champion: none." in (reports / "gate.md").read_text()
    searches = json.loads((reports / "text_metrics.json").read_text())
    assert searches["models"]["tower"]["recall@100"] > searches["models"]["popularity"]["recall@100"]
    rows = (reports / "recommendations.md").read_text().splitlines()[2:]
    assert len(rows) == 15
    by_user: dict[str, list[float]] = {}
    for row in rows:
        user, _, seconds = row.strip("| ").split(" | ")
        by_user.setdefault(user, []).append(float(seconds))
    assert len(by_user) == 3
    assert all(seconds == sorted(seconds, reverse=True) for seconds in by_user.values())
    for page in ("ranking.html", "validation.html"):
        assert "<html" in (reports / page).read_text()
    assert (tmp_path / "work" / "releases" / "000001" / "manifest.json").exists()


def test_a_log_without_searches_passes_by_text_matching_and_says_so(prepared, tmp_path, capsys):
    log, place = tmp_path / "log", Workspace(tmp_path)
    log.mkdir()
    for table in prepared.place.log.iterdir():
        if not table.name.startswith("searches"):
            (log / table.name).symlink_to(table)
    ingest(log, "own", place.events, prepared.config.ingestion, prepared.config.engine)
    settings = prepared.config.model_dump(mode="json")
    dataset, model, results = (
        kind(uri=str(tmp_path / name))
        for kind, name in ((Dataset, "dataset"), (Model, "model"), (Dataset, "results"))
    )
    events, metrics = Dataset(uri="", metadata={"folder": str(place.events)}), Metrics()
    text.build_search_dataset.python_func(events, settings["text"], settings["split"], dataset)
    text.train_text.python_func(dataset, settings["text"], settings["text_training"], model)
    text.evaluate_text.python_func(model, dataset, metrics, results)
    reason = f"The events in {place.events} have no searches"
    assert json.loads((tmp_path / "results").read_text())["absent"].startswith(reason)
    assert model.metadata["absent"].startswith(reason)
    assert f"Text matching is left out. {reason}" in capsys.readouterr().out
    assert not [*(tmp_path / "dataset").iterdir(), *(tmp_path / "model").iterdir()]
    assert metrics.metadata == {}


def test_a_failing_task_stops_the_run_with_a_known_error(prepared, triton_venv, repository, tmp_path, capfd):
    from watchrank_pipelines.local import PipelineError

    with pytest.raises(PipelineError, match="ingest"):
        run_training(
            prepared.config,
            tmp_path / "work",
            data=tmp_path / "nowhere",
            source="own",
            feature_repo=repository / "feature_repo",
            triton_venv=triton_venv,
        )
    assert "nowhere" in capfd.readouterr().out
    assert not (tmp_path / "work" / "releases").exists()
