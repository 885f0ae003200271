import logging
import socket
import subprocess

import pytest
import yaml
from kfp import dsl

import watchrank
from watchrank.config import Config
from watchrank.errors import InputError
from watchrank_pipelines import cli, kubeflow
from watchrank_pipelines.parameters import arguments
from watchrank_pipelines.training import training_pipeline

SECRET = "s3cr3t-value"
SUBMIT = ["submit", "--param", "workspace=/workspace"]
SCHEDULE = ["schedule", "--param", "workspace=/workspace", "--cron"]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Keep a user's own settings of kfp out of the tests, and the log as it was."""
    monkeypatch.setattr("kfp.Client._LOCAL_KFP_CONTEXT", str(tmp_path / "kfp" / "context.json"))
    before = {name: logging.getLogger(name).level for name in ("watchrank", "urllib3.connectionpool")}
    yield
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture
def server(kubeflow_server):
    with kubeflow_server() as running:
        yield running


@pytest.fixture
def run(capsys, monkeypatch, server):
    """Run the command against a server; return its exit code and all that it printed."""

    def command(*words, at=None, **settings):
        settings = {"host": (at or server).url, **settings}
        chosen = [f"--set=kubeflow.{name}={value}" for name, value in settings.items()]
        monkeypatch.setattr("sys.argv", ["watchrank-pipelines", *words, *chosen])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr()
        return ended.value.code or 0, told.out + told.err

    return command


def only(items):
    (item,) = items.values()
    return item


def test_submit_uploads_a_version_named_by_the_code_and_starts_a_run_of_it(run, server):
    code, told = run(
        *SUBMIT, "--set=training.epochs=7", "--set=ranking.model=mmoe", service_account="trainer"
    )
    assert code == 0, told
    pipeline, version, started = only(server.pipelines), only(server.versions), only(server.runs)
    assert pipeline.display_name == "watchrank-training"
    assert version.display_name.startswith(f"{watchrank.__version__}-")
    assert version.pipeline_spec["pipeline_spec"]["pipelineInfo"]["name"] == "watchrank-training"
    assert started.pipeline_version_reference.pipeline_version_id == version.pipeline_version_id
    assert started.display_name.startswith(f"watchrank-training {version.display_name} ")
    assert " ".join(told.split()).endswith(f"Started {started.display_name}")
    assert started.service_account == "trainer"
    given = started.runtime_config.parameters
    assert given["workspace"] == "/workspace"
    assert given["training"]["epochs"] == 7
    assert given["model"] == "mmoe"
    assert "model" not in given["ranking"]
    assert not {"kubeflow", "serving"} & set(given)
    assert only(server.experiments).experiment_id == started.experiment_id


def test_the_same_code_is_one_version_and_changed_code_another(run, server, monkeypatch):
    for _ in range(2):
        assert run(*SUBMIT)[0] == 0
    assert len(server.runs) == 2
    first = only(server.versions)
    monkeypatch.setattr(kubeflow, "_commit", lambda: "abc1234")
    assert run(*SUBMIT)[0] == 0
    only(server.pipelines)
    only(server.experiments)
    assert len(server.versions) == 2
    *_, last = server.versions.values()
    assert last.display_name.startswith(f"{watchrank.__version__}-abc1234-")
    assert last.pipeline_id == first.pipeline_id


def test_another_cluster_is_another_version(run, server):
    for image in ("registry/a:1", "registry/b:1", "registry/a:1"):
        assert run(*SUBMIT, f"--set=cluster.image={image}", "--set=cluster.workspace_claim=work")[0] == 0
    first, second = server.versions.values()
    assert first.display_name != second.display_name
    executors = first.pipeline_spec["pipeline_spec"]["deploymentSpec"]["executors"]
    assert {executor["container"]["image"] for executor in executors.values()} == {"registry/a:1"}
    mounts = first.pipeline_spec["platform_spec"]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert {mount["pvcMount"][0]["constant"] for mount in mounts.values()} == {"work"}


def test_a_version_names_the_commit_and_tells_packages_apart(tmp_path, monkeypatch):
    package = tmp_path / "watchrank" / "__init__.py"
    package.parent.mkdir()
    package.write_text("")
    monkeypatch.setattr(watchrank, "__file__", str(package))
    one = b"# a comment\na: 1\nb: 2"
    without = kubeflow.version_name(one)
    assert without == f"{watchrank.__version__}-1176b831"  # sha256('[{"a": 1, "b": 2}]')
    assert kubeflow.version_name(b"b: 2\na: 1") == without
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=n@n"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "One"]):
        subprocess.run([*git, *words], check=True)
    asked = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    commit = asked.stdout.strip()
    assert kubeflow.version_name(one) == f"{watchrank.__version__}-{commit}-1176b831"
    package.write_text("changed = True")
    assert f"-{commit}-dirty-" in kubeflow.version_name(one)
    assert kubeflow.version_name(b"a: 1") != kubeflow.version_name(one)


def test_a_schedule_is_made_once_and_replaced_after(run, server):
    assert run(*SCHEDULE, "0 3 * * *", service_account="trainer")[0] == 0
    first = only(server.recurring_runs)
    assert first.service_account == "trainer"
    assert first.trigger.cron_schedule.cron == "0 0 3 * * *"
    assert (first.max_concurrency, first.no_catchup, first.mode) == ("1", True, "ENABLE")
    code, told = run(*SCHEDULE, "30 0 4 * * *", "--set=training.epochs=9")
    second = only(server.recurring_runs)
    assert code == 0
    assert "30 0 4 * * *" in told
    assert second.recurring_run_id != first.recurring_run_id
    assert second.trigger.cron_schedule.cron == "30 0 4 * * *"
    assert second.runtime_config.parameters["training"]["epochs"] == 9
    reference = second.pipeline_version_reference
    assert reference.pipeline_version_id == only(server.versions).pipeline_version_id
    assert not server.runs


def test_a_refused_schedule_leaves_the_old_one(run, server):
    assert run(*SCHEDULE, "0 3 * * *")[0] == 0
    code, told = run(*SCHEDULE, "0 3 * * x")
    assert code == 7
    assert "Schedule cron is not supported: 0 0 3 * * x. Correct what it names." in told
    assert only(server.recurring_runs).trigger.cron_schedule.cron == "0 0 3 * * *"


def test_a_schedule_is_paused_resumed_listed_and_deleted(run, server):
    run(*SCHEDULE, "0 3 * * *")
    assert run("schedule", "pause")[0] == 0
    assert only(server.recurring_runs).mode == "DISABLE"
    assert run(*SCHEDULE, "0 5 * * *")[0] == 0
    assert only(server.recurring_runs).mode == "DISABLE", "a new release must not wake a paused schedule"
    code, told = run("schedule", "list")
    assert code == 0
    assert all(word in told for word in ("watchrank-training", "0 0 5 * * *", "DISABLE"))
    assert run("schedule", "resume")[0] == 0
    assert only(server.recurring_runs).mode == "ENABLE"
    assert run("schedule", "delete", "--pipeline", "training")[0] == 0
    assert not server.recurring_runs
    code, told = run("schedule", "delete")
    assert code == 2
    assert "watchrank-training has no schedule" in told


def test_schedules_beyond_one_page_are_found_and_others_left_alone(run, server, monkeypatch):
    run(*SCHEDULE, "0 3 * * *")
    mine = only(server.recurring_runs)
    for number in range(5):
        copy = type(mine)(**{name: getattr(mine, name) for name in mine.openapi_types})
        copy.recurring_run_id, copy.display_name = (
            str(number),
            "another" if number == 0 else mine.display_name,
        )
        server.recurring_runs[copy.recurring_run_id] = copy
    monkeypatch.setattr(kubeflow, "_PAGE", 2)
    assert run("schedule", "list")[1].count("watchrank-training") == 5
    assert run(*SCHEDULE, "0 5 * * *")[0] == 0
    names = [found.display_name for found in server.recurring_runs.values()]
    assert sorted(names) == ["another", "watchrank-training"]


@pytest.mark.parametrize("kind", ["token", "cookie"])
def test_a_secret_of_a_file_is_sent_and_not_told(kind, run, kubeflow_server, tmp_path, caplog):
    secret = tmp_path / "secret"
    sent = {"token": f"Bearer {SECRET}", "cookie": f"authservice_session={SECRET}"}[kind]
    secret.write_text(sent.removeprefix("Bearer ") + "\n")
    with kubeflow_server(credentials=sent) as guarded:
        code, told = run(*SUBMIT, at=guarded, **{f"{kind}_file": secret})
        assert code == 0, told
        assert guarded.runs
        secret.write_text("wrong-" + SECRET)
        refused, why = run("schedule", "list", at=guarded, **{f"{kind}_file": secret})
    assert refused == 7
    assert "KubeflowError: " in why
    assert "401 UNAUTHORIZED, Request header error: there is no user identity header. Renew the token" in why
    assert SECRET not in told + why + caplog.text


def test_many_users_are_told_apart_by_namespace(run, kubeflow_server):
    with kubeflow_server(namespace="team") as shared:
        code, told = run("schedule", "list", at=shared)
        assert code == 2
        assert "has many users. Set kubeflow.namespace." in told
        for words in (SUBMIT, [*SCHEDULE, "0 3 * * *"], ["schedule", "pause"]):
            code, told = run(*words, at=shared, namespace="team")
            assert code == 0, told
        assert only(shared.experiments).namespace == only(shared.pipelines).namespace == "team"


def test_a_refused_call_is_one_sentence_with_a_remedy(run, server):
    server.refused_calls = {"POST /runs"}
    code, told = run(*SUBMIT)
    assert code == 7
    *_, sentence = told.strip().splitlines()
    assert sentence == (
        f"KubeflowError: Kubeflow at {server.url} refused: 403 FORBIDDEN, User 'u' is not authorized with "
        "reason: POST /runs. Ask for the right to it in the namespace of kubeflow.namespace, or name another."
    )
    assert "Traceback" not in told


def test_a_login_page_is_known_for_one(run, kubeflow_server):
    with kubeflow_server(login_page=True) as gateway:
        code, told = run("schedule", "list", at=gateway, namespace="team")
    assert code == 7
    assert "KubeflowError: Kubeflow answered with a page, most likely its login." in told


def test_a_server_that_is_not_there_is_said_so(run, caplog):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"http://127.0.0.1:{free.getsockname()[1]}"
        code, told = run("schedule", "list", host=host)
    assert code == 7
    assert (
        f"KubeflowError: Kubeflow at {host} does not answer: NewConnectionError. Check kubeflow.host" in told
    )
    assert "Retrying" not in told + caplog.text


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["submit"], "watchrank-training needs workspace. Give it by --param workspace=value."),
        ([*SUBMIT, "--param=training={}"], "has no plain parameter training. Set it by --set."),
        ([*SUBMIT, "--param=nothing=1"], "has no plain parameter nothing. It has workspace, data, "),
        ([*SUBMIT, "--param=nothing"], "Cannot read the parameter 'nothing'. Write name=value."),
        (
            [*SUBMIT, "--pipeline=nothing"],
            "There is no pipeline 'nothing'. There is feature, training, re",
        ),
        ([*SCHEDULE, "@daily"], "The cron expression '@daily' has 1 fields."),
        (["schedule"], "--cron makes a schedule"),
        (["schedule", "pause", "--cron=0 3 * * *"], "--cron makes a schedule"),
        ([*SUBMIT, "--set=kubeflow.token_file=/nowhere"], "Cannot read /nowhere: FileNotFoundError."),
        ([*SUBMIT, "--set=kubeflow.hots=x"], "kubeflow.hots: Extra inputs are not permitted"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_sent(words, sentence, run, server):
    code, told = run(*words)
    assert code == 2
    assert sentence in told
    assert not [call for call in server.calls if call.startswith("POST")]


@pytest.mark.parametrize("host", ["ml-pipeline:8888", ""])
def test_a_host_without_its_protocol_is_refused(host, run):
    code, told = run(*SUBMIT, host=host)
    assert code == 2
    assert "kubeflow.host: " in told


def test_a_run_on_kubeflow_has_the_parameters_of_a_local_one():
    given = arguments(training_pipeline, Config(), {"workspace": "/workspace"})
    assert set(given) | {"data", "source", "feature_repo", "model_repository", "release_store"} == set(
        training_pipeline.component_spec.inputs
    )
    with pytest.raises(InputError, match="needs workspace"):
        arguments(training_pipeline, Config(), {})


def test_every_pipeline_is_compiled(run, tmp_path, capsys, monkeypatch):
    from watchrank_pipelines.catalogue import PIPELINES

    monkeypatch.setattr("sys.argv", ["watchrank-pipelines", "compile", "--output", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    names = {
        next(yaml.safe_load_all(file.read_text()))["pipelineInfo"]["name"]
        for file in (tmp_path / "out").glob("*.yaml")
    }
    assert names == {pipeline.name for pipeline in PIPELINES.values()}


def test_a_parameter_is_read_as_its_type():
    @dsl.component(base_image="watchrank-python")
    def roll_back(release: int, share: float, force: bool):
        pass

    @dsl.pipeline(name="watchrank-example")
    def example(release: int, share: float = 0.5, force: bool = False):
        roll_back(release=release, share=share, force=force)

    given = {"release": "3", "share": "1", "force": "true"}
    assert arguments(example, Config(), given) == {"release": 3, "share": 1, "force": True}
    for wrong in (
        {"release": "three"},
        {"release": "true"},
        {"release": "3", "force": "1"},
        {"release": "["},
    ):
        with pytest.raises(InputError, match=r"which is no (Integer|Boolean)\. Give it as YAML reads it"):
            arguments(example, Config(), wrong)
