"""Parameters are data: none of them becomes a command, a word of one or a way out of a folder."""

import contextlib
import importlib
import json
import pkgutil
import shutil
from pathlib import Path
from typing import get_args

import pytest
from kfp import dsl, local
from kfp.dsl.python_component import PythonComponent
from pydantic import TypeAdapter

import watchrank_components
from watchrank import spark_application
from watchrank.config import Config, LaunchSettings, SparkSettings
from watchrank.deployment.release_store import ReleaseStore
from watchrank.errors import WatchrankError
from watchrank.lease import give_back
from watchrank.releases import MANIFEST, read_manifest
from watchrank.training import launch, train_job
from watchrank.training.jobs import RankingJob, TrainingJob
from watchrank_components.run import begin
from watchrank_pipelines import cluster

NASTY = [
    "a; touch x",
    "$(touch x)",
    "`touch x`",
    'a" && touch x && "',
    "a' && touch x && '",
    "a\ntouch x",
    "a | touch x",
    "--help",
    "{{$.inputs}}",
    "${HOME}",
    "../../x",
    "päth 🎬",
]


def components():
    """Return every component by its name."""
    for module in pkgutil.iter_modules(watchrank_components.__path__, "watchrank_components."):
        found = vars(importlib.import_module(module.name))
        for name, value in found.items():
            if isinstance(value, PythonComponent) and value.python_func.__module__ == module.name:
                yield name, value


COMPONENTS = dict(components())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, in which a command that ran would leave `x`."""
    (tmp_path / "here" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "deep")
    return tmp_path


def left(folder):
    return [path for path in folder.rglob("x") if path.is_file()]


def nasty_values(component, text, folder):
    """Return a value for each parameter of a component: the text wherever one goes."""
    values = {}
    for name, kind in component.python_func.__annotations__.items():
        if name == "return":
            continue
        if kind in (str, int, bool, dict):
            values[name] = {str: text, int: -1, bool: True, dict: {text: text}}[kind]
        elif kind is dsl.PipelineTaskFinalStatus:
            values[name] = dsl.PipelineTaskFinalStatus("FAILED", text, text, 1, text)
        else:
            artifact = get_args(kind)[0] if get_args(kind) else kind
            values[name] = artifact(uri=str(folder / "artifacts" / name), metadata={"folder": text})
    return values


@pytest.mark.parametrize("component", COMPONENTS.values(), ids=list(COMPONENTS))
def test_no_parameter_of_a_component_is_a_command(component, folder, monkeypatch):
    started = []

    def refuse(command, *_, **__):
        started.append(command)
        raise OSError

    monkeypatch.setattr("subprocess.Popen.__init__", refuse)
    monkeypatch.setattr("os.system", refuse)
    for text in NASTY:
        with contextlib.suppress(Exception):  # what it says of them is for other tests
            component.python_func(**nasty_values(component, text, folder))
        shutil.rmtree(folder / "artifacts", ignore_errors=True)
        assert not started, text
        assert not left(folder), text


def test_every_component_is_there():
    assert {"ingest", "train_ranking", "export_release", "deploy_release", "begin", "finish"} <= {*COMPONENTS}


@pytest.mark.parametrize("text", [text for text in NASTY if "/" not in text and "{{$" not in text])
def test_kubeflows_runner_hands_parameters_on_as_they_are(text, folder):
    """All but `{{$`, with which KFP's own placeholders begin."""
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(folder / "root"))
    workspace = folder / text
    task = begin(workspace=str(workspace), run=text, lease_hours=1, wait_minutes=0)
    assert task.output == str(workspace)
    assert json.loads((workspace / "lease.json").read_text())["run"] == text
    assert give_back(workspace, text)
    assert not left(folder)


# -- What is handed to clusters and processes --------------------------------------------------------


def job(text, folder="/workspace"):
    return RankingJob(
        dataset=Path(folder) / text,
        output=Path(folder) / text,
        settings=Config().ranking,
        training=Config().training,
    )


@pytest.mark.parametrize("text", NASTY)
def test_a_training_is_one_word_of_a_list(text):
    pod = {"image": text, "workspace_claim": "workspace", "nodes": 2, "node_selector": {text: text}}
    body = train_job.manifest(job(text), LaunchSettings(**pod))
    trainer = body["spec"]["trainer"]
    *words, content = [*trainer["command"], *trainer["args"]]
    assert words == ["torchrun", "-m", "watchrank.training.worker"]
    assert TypeAdapter(TrainingJob).validate_json(content) == job(text)
    assert body["metadata"]["name"].replace("-", "").isalnum()


@pytest.mark.parametrize("text", NASTY)
def test_a_training_on_this_machine_is_one_word_too(text, monkeypatch):
    started = []

    class Started:
        def __init__(self, words, **options):
            assert not options
            started.append(words)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def wait(self):
            return 1

    monkeypatch.setattr(launch.subprocess, "Popen", Started)
    with pytest.raises(WatchrankError):
        launch.launch(job(text, "/nowhere"), LaunchSettings(processes=2))
    (words,) = started
    assert TypeAdapter(TrainingJob).validate_json(words[-1]) == job(text, "/nowhere")
    assert not any(text in word for word in words[:-1])


@pytest.mark.parametrize("text", NASTY)
def test_a_stage_on_spark_reads_its_words_as_they_were(text, monkeypatch):
    made = {}
    monkeypatch.setattr(
        spark_application, "run_job", lambda kind, manifest, settings: made.update(manifest["spec"])
    )
    settings = SparkSettings(image="registry/watchrank-spark:1", workspace_claim="workspace")
    options = {"data": f"/workspace/{text}", "source": text, "workspace": "/workspace"}
    sections = {"engine": {"spark": {"conf": {"spark.x": text}}}}
    spark_application.run_on_spark("ingest", options, sections, settings, text)
    stage, *words = made["arguments"]
    assert words[:4] == ["--data", f"/workspace/{text}", "--source", text]
    chosen = [word.removeprefix("--set=") for word in words if word.startswith("--set=")]
    assert Config.load(None, chosen).engine.spark.conf == {"spark.x": text}
    assert stage == "ingest"


@pytest.mark.parametrize("text", NASTY)
def test_what_becomes_a_name_on_a_cluster_is_refused(text):
    for wrong in (
        {"workspace_claim": text},
        {"secrets": {text: {"key": "VARIABLE"}}},
        {"secrets": {"name": {"key": text}}},
        {"memory": text},
    ):
        with pytest.raises(ValueError, match=r"pattern|valid"):
            cluster.ClusterSettings.model_validate(wrong)


# -- Numbers and names that lead out of a folder -----------------------------------------------------


MANIFESTS = {
    "a number that is a path": {"release": "../../x"},
    "a number that is none": {"release": True},
    "a number below": {"release": 0},
    "a number too long": {"release": 1_000_000},
    "an endpoint above": {"endpoints": ["../../x"]},
    "an endpoint that is a path": {"endpoints": ["/x"]},
    "an endpoint that leads out": {"endpoints": ["ranking/../../x"]},
    "an endpoint that is an option": {"endpoints": ["--x"]},
    "a file above": {"files": {"../../x": "0"}},
    "a file elsewhere": {"files": {"/x": "0"}},
    "an origin that is a path": {"warm_started_from": "../../x"},
    "an origin below": {"warm_started_from": -1},
    "no mapping of files": {"files": ["x"]},
}


@pytest.mark.parametrize("wrong", MANIFESTS.values(), ids=MANIFESTS)
def test_a_manifest_leads_nowhere_else(wrong, tmp_path):
    manifest = {"release": 7, "endpoints": ["ranking"], "files": {}} | wrong
    release = tmp_path / "store" / "releases" / "000007"
    release.mkdir(parents=True)
    (release / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(WatchrankError, match=r"is no release, its manifest.json cannot be read"):
        read_manifest(release)
    with pytest.raises(WatchrankError, match=r"is no manifest of release 7: it (names|lists)"):
        ReleaseStore(str(tmp_path / "store")).pull(7, tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()


@pytest.mark.parametrize("number", [-1, 0, 10**9])
def test_a_number_of_no_release_is_refused(number, tmp_path):
    with pytest.raises(WatchrankError, match=f"holds no release {number}"):
        ReleaseStore(str(tmp_path / "store")).serve(number)
