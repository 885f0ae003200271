"""Secrets are planted wherever one may be; nothing that is rendered, written or told holds one of them."""

import asyncio
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from watchrank import spark_application
from watchrank.cli import app
from watchrank.cli.app import run
from watchrank.config import Config, ExportSettings, LaunchSettings, ServingSettings, SparkSettings
from watchrank.deployment.deploy import serving
from watchrank.export.release import refresh_release
from watchrank.feature_store import online_user_features, open_store
from watchrank.serving.guard import Guard, read_token
from watchrank.training import train_job
from watchrank.training.jobs import RankingJob
from watchrank.webhook import VARIABLE, WebhookError
from watchrank.workspace import Workspace
from watchrank_components.run import finish
from watchrank_pipelines import cli as pipelines
from watchrank_pipelines.catalogue import find, for_kubeflow
from watchrank_pipelines.local import PipelineError, run_here

ROOT = Path(__file__).parents[3]
MARK = "s3cr3t"
NOWHERE = "127.0.0.1:1"

VARIABLES = {
    "AWS_ACCESS_KEY_ID": f"AKIA{MARK}",
    "AWS_SECRET_ACCESS_KEY": f"{MARK}-aws",
    "AWS_REGION": "us-east-1",
    "AWS_ENDPOINT_URL": f"http://{NOWHERE}",
    "WATCHRANK_REDIS": f"{NOWHERE},password={MARK}-redis",
    "PGHOST": "127.0.0.1",
    "PGPORT": "1",
    "PGUSER": "watchrank",
    "PGDATABASE": "watchrank",
    "PGPASSWORD": f"{MARK}-postgres",
    VARIABLE: f"http://{NOWHERE}/{MARK}-webhook",
}
FILES = {
    "token": f"{MARK}-kubeflow",
    "cookie": f"authservice_session={MARK}-cookie",
    "bearer": f"{MARK}-bearer",
    "admin": f"{MARK}-admin",
}


@pytest.fixture(autouse=True)
def planted(tmp_path, monkeypatch):
    """Plant them in the environment, and in files of a folder, which is returned."""
    monkeypatch.setattr("kfp.Client._LOCAL_KFP_CONTEXT", str(tmp_path / "kfp" / "context.json"))
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "files"
    folder.mkdir()
    for name, value in FILES.items():
        (folder / name).write_text(value)
    return folder


@pytest.fixture
def config(planted, tmp_path):
    """A configuration that names every secret."""
    values = {
        "deployment": {"admin_key_file": str(planted / "admin"), "grpc_url": NOWHERE},
        "serving": {"token_file": str(planted / "bearer")},
        "kubeflow": {"host": f"http://{NOWHERE}", "token_file": str(planted / "token")},
        "cluster": {
            "workspace_claim": "workspace",
            "secrets": {"watchrank-pipelines": {name: name for name in VARIABLES}},
        },
    }
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


@pytest.fixture
def told(monkeypatch, capsys, caplog):
    """Run a command line; return all that it told."""

    def command(program, *words):
        monkeypatch.setattr("sys.argv", ["program", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            run(program)
        shown = capsys.readouterr()
        return ended.value.code or 0, shown.out + shown.err + caplog.text

    return command


def test_compiled_pipelines_name_secrets_and_hold_none(config, told, tmp_path):
    code, _ = told(pipelines.app, "compile", "--config", config, "--output", tmp_path / "yaml")
    assert code == 0
    written = {file.name: file.read_text() for file in (tmp_path / "yaml").iterdir()}
    assert "watchrank-retraining.yaml" in written
    for text in written.values():
        assert "secretName: watchrank-pipelines" in text
        assert "envVar: WATCHRANK_WEBHOOK" in text
        assert MARK not in text


@pytest.mark.parametrize("overlay", ["local", "production"])
def test_rendered_manifests_hold_none(program, overlay):
    program("kubectl")
    folder = ROOT / "infra" / "kubernetes" / "overlays" / overlay
    rendered = subprocess.run(
        ["kubectl", "kustomize", folder], capture_output=True, text=True, check=True
    ).stdout
    assert MARK not in rendered
    assert not [each for each in yaml.safe_load_all(rendered) if each["kind"] == "Secret"]


def test_the_objects_of_jobs_hold_none():
    pod = {
        "image": "registry/watchrank-python:1",
        "workspace_claim": "workspace",
        "secrets": {"watchrank-pipelines": {name: name for name in VARIABLES}},
    }
    job = RankingJob(
        dataset="/workspace/dataset",
        output="/workspace/model",
        settings=Config().ranking,
        training=Config().training,
    )
    of_training = train_job.manifest(job, LaunchSettings(**pod, nodes=2))
    of_spark = spark_application.manifest(
        "ingest", ["--data", "s3://bucket/log"], SparkSettings(**pod), "run"
    )
    for made in map(str, (of_training, of_spark)):
        assert "WATCHRANK_WEBHOOK" in made
        assert MARK not in made


@pytest.mark.parametrize("program", [app, pipelines.app], ids=["watchrank", "watchrank-pipelines"])
def test_help_tells_none(program):
    for command in [[], *([name] for name in get_command(program).commands)]:
        shown = CliRunner().invoke(program, [*command, "--help"])
        assert shown.exit_code == 0
        assert MARK not in shown.output


def test_the_settings_tell_files_and_not_what_is_in_them(config, told):
    code, shown = told(app, "settings", "--config", config)
    assert code == 0
    assert "bearer" in shown
    assert MARK not in shown


# -- What fails says why, and with whose key it did not ----------------------------------------------

FAILING = [
    (app, ["releases", "--store", "s3://bucket/prefix"], "cannot be used"),
    (app, ["ingest", "--data", "s3://bucket/log", "--config", "config.yaml"], "cannot be used"),
    (app, ["serve-http", "--config", "config.yaml"], "There is no"),
]
SUBMIT = ["submit", "--param", "workspace=/workspace", "--config", "config.yaml"]
REFUSED = [
    ([], "does not answer"),
    (["--set=kubeflow.token_file=", "--set=kubeflow.cookie_file=files/cookie"], "does not answer"),
    ([f"--set=kubeflow.host=http://user:{MARK}@host"], "kubeflow.host"),
]


@pytest.mark.parametrize(
    ("program", "words", "said"),
    [*FAILING, *((pipelines.app, [*SUBMIT, *words], said) for words, said in REFUSED)],
)
def test_a_command_that_fails_tells_none(program, words, said, config, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, shown = told(program, *words)
    assert code != 0
    assert said in " ".join(shown.split())
    assert MARK not in shown


def test_a_triton_that_is_not_there_tells_no_key(config):
    with pytest.raises(Exception, match="No Triton can be reached") as failure:
        serving(["recommend"], Config.load(config).deployment)
    assert MARK not in repr(failure.value)


@pytest.mark.parametrize("address", [NOWHERE, "nowhere", "nowhere:redis", f"{NOWHERE},ssl=True"])
def test_a_redis_that_fails_tells_no_password(address, prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("WATCHRANK_REDIS", f"{address},password={MARK}-redis")
    with pytest.raises(Exception, match=r".") as failure:
        online_user_features(_store(prepared, "redis", tmp_path), [1])
    assert MARK not in f"{failure.value!r} {failure.value}"
    assert MARK.encode() not in b"".join(file.read_bytes() for file in tmp_path.glob("state/*"))


def test_a_redis_that_refuses_tells_no_password(redis, prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("WATCHRANK_REDIS", f"{redis},password={MARK}-redis")
    with pytest.raises(Exception, match="AUTH") as failure:
        online_user_features(_store(prepared, "redis", tmp_path), [1])
    assert MARK not in f"{failure.value!r}"


def test_a_postgres_that_fails_tells_no_password(prepared, tmp_path):
    with pytest.raises(Exception, match=r"registry of .* does not answer") as failure:
        _store(prepared, "sql", tmp_path)
    assert MARK not in f"{failure.value!r}"


def _store(prepared, kind, folder):
    return open_store(
        ROOT / "feature_repo" / f"feature_store_{kind}.yaml", prepared.place.features, folder / "state"
    )


def test_a_caller_that_is_refused_is_told_no_token(planted, caplog):
    sent = []

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/recommend/1",
        "raw_path": b"/recommend/1",
        "query_string": b"",
        "headers": [(b"authorization", b"Bearer wrong")],
    }
    guard = Guard(None, ServingSettings(), read_token(planted / "bearer"))
    asyncio.run(guard(scope, None, send))
    assert sent[0]["status"] == 401
    assert MARK not in f"{sent} {caplog.text}"


# -- The webhook -------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["", f"http://{NOWHERE}/given"])
def test_a_failed_run_tells_the_webhook_whose_address_is_in_the_environment(
    given, tmp_path, monkeypatch, capsys
):
    asked = []
    monkeypatch.setattr("watchrank.webhook.post", lambda url, text, **_: asked.append(url))
    ended = SimpleNamespace(
        state="FAILED", pipeline_job_resource_name="run-7", error_message=SimpleNamespace(message="no data")
    )
    finish.python_func(status=ended, workspace=str(tmp_path), run="run-7", webhook=given)
    assert asked == [given or VARIABLES[VARIABLE]]
    assert MARK not in capsys.readouterr().out
    monkeypatch.delenv(VARIABLE)
    finish.python_func(status=ended, workspace=str(tmp_path), run="run-7", webhook="")
    assert len(asked) == 1, "nobody is told"


def test_a_webhook_that_does_not_answer_is_not_named(tmp_path):
    ended = SimpleNamespace(state="FAILED", pipeline_job_resource_name="run-7", error_message=None)
    with pytest.raises(WebhookError) as failure:
        finish.python_func(status=ended, workspace=str(tmp_path), run="run-7", webhook="")
    assert MARK not in f"{failure.value!r}"


# -- What is kept ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_logs_and_pages_of_runs_here_hold_none(prepared, config, tmp_path, capfd):
    """One that succeeds, with its pages, and one that fails and tells the webhook in vain."""
    settings, place = Config.load(config), Workspace(tmp_path / "work")
    settings = prepared.config.model_copy(
        update={name: getattr(settings, name) for name in ("deployment", "serving", "kubeflow", "cluster")}
    )
    given = {"feature_repo": str(ROOT / "feature_repo")}
    run_here(find("feature"), settings, place.root, given | {"data": str(prepared.place.log)}, tmp_path)
    shutil.copytree(prepared.place.dataset, place.dataset)
    reports = run_here(find("drift"), settings, place.root, given, tmp_path)
    assert {page.name for page in reports.iterdir()} == {"drift.html", "skew.html"}
    with pytest.raises(PipelineError, match="ingest"):
        run_here(for_kubeflow("feature"), settings, place.root, given | {"data": "s3://x/y"}, tmp_path)
    shown = capfd.readouterr()
    assert "cannot be used" in " ".join((shown.out + shown.err).split())
    assert MARK not in shown.out + shown.err
    written = [file for file in place.root.rglob("*") if file.is_file()]
    assert {"report.html", "drift.html", "skew.html"} <= {file.name for file in written}
    assert [file for file in written if MARK.encode() in file.read_bytes()] == []


def test_a_release_holds_none(released, prepared, tmp_path):
    fresh = refresh_release(released, prepared.store, tmp_path / "releases", ExportSettings())
    for file in fresh.rglob("*"):
        assert file.is_dir() or MARK.encode() not in file.read_bytes()
