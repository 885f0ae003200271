import json
import threading
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from kfp.dsl import Dataset, Metrics, Model

from watchrank.deployment.model_repository import serving
from watchrank.events import days
from watchrank.ingestion import ingest
from watchrank.lease import take
from watchrank.workspace import Workspace
from watchrank_components import text
from watchrank_pipelines.catalogue import find, for_kubeflow
from watchrank_pipelines.local import PipelineError, run_here


def test_logs_become_answers_of_triton(prepared, triton_venv, repository, tmp_path):
    given = {"feature_repo": str(repository / "feature_repo")}
    workspace = tmp_path / "work"
    reports = run_here(find("training"), prepared.config, workspace, given, triton_venv)
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
    assert (workspace / "releases" / "000001" / "manifest.json").exists()
    reports = run_here(find("drift"), prepared.config, workspace, given, triton_venv)
    assert {page.name for page in reports.iterdir()} == {"drift.html", "skew.html"}
    with pytest.raises(PipelineError, match="roll-back"):
        run_here(find("rollback"), prepared.config, workspace, {}, triton_venv)
    reports = run_here(find("rollback"), prepared.config, workspace, {"release": "1"}, triton_venv)
    assert "Release **1** serves. Before it did release 1." in (reports / "summary.md").read_text()


@pytest.mark.slow
def test_a_retraining_starts_from_what_serves_and_makes_nothing_twice(
    prepared, triton_venv, repository, tmp_path
):
    config, workspace = prepared.config, tmp_path / "work"
    given = {"feature_repo": str(repository / "feature_repo"), "data": str(prepared.place.log)}
    last = max(days(prepared.place.events))

    def run(name, config=config, **more):
        return run_here(find(name), config, workspace, given | more, triton_venv)

    def manifest(number):
        return json.loads((workspace / "releases" / f"{number:06d}" / "manifest.json").read_text())

    windows = config.split.model_copy(update={"until": last - timedelta(days=1)})
    run("training", config.model_copy(update={"split": windows}))
    assert manifest(1)["until"] == str(last - timedelta(days=1))
    gates = config.gates.model_copy(update={"force": True, "baselines": ()})  # the log is small
    easy = config.model_copy(update={"gates": gates})
    for _ in range(2):
        reports = run("retraining", easy)
        assert manifest(2)["until"] == str(last)
        assert manifest(2)["warm_started_from"] == 1
        assert serving(workspace / "model_repository", "recommend") == 2
    assert "champion: release 000002" in (reports / "gate.md").read_text()
    assert not (workspace / "releases" / "000003").exists()
    with pytest.raises(PipelineError, match="plan"):
        run("retraining", easy, until=str(last - timedelta(days=1)))
    assert serving(workspace / "model_repository", "recommend") == 2


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
    text.build_search_dataset.python_func(
        events, settings["text"], settings["split"], settings["engine"], dataset
    )
    text.train_text.python_func(
        dataset, settings["text"], settings["text_training"], settings["launch"], "", model
    )
    text.evaluate_text.python_func(model, dataset, metrics, results)
    reason = f"The events in {place.events} have no searches"
    assert json.loads((tmp_path / "results").read_text())["absent"].startswith(reason)
    assert model.metadata["absent"].startswith(reason)
    assert f"Text matching is left out. {reason}" in capsys.readouterr().out
    assert not [*(tmp_path / "dataset").iterdir(), *(tmp_path / "model").iterdir()]
    assert metrics.metadata == {}


def test_a_failing_task_stops_the_run_at_once_with_a_known_error(prepared, repository, tmp_path, capfd):
    given = {"feature_repo": str(repository / "feature_repo"), "data": str(tmp_path / "nowhere")}
    workspace = tmp_path / "work"
    with pytest.raises(PipelineError, match="ingest"):
        run_here(find("feature"), prepared.config, workspace, given, tmp_path / "no venv")
    said = capfd.readouterr().out
    assert "nowhere" in said
    assert "Retrying" not in said
    assert not (workspace / "features").exists()


@pytest.fixture
def chat():
    """A webhook that keeps what it is told."""
    told = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever).start()
    yield f"http://127.0.0.1:{server.server_port}/hook", told
    server.shutdown()
    server.server_close()


def test_a_guarded_run_takes_the_workspace_gives_it_back_and_reports_its_failure(
    prepared, repository, tmp_path, chat, capfd
):
    url, told = chat
    guarded, config = for_kubeflow("feature"), prepared.config
    given = {"feature_repo": str(repository / "feature_repo"), "webhook": url, "wait_minutes": "0"}
    workspace = tmp_path / "work"
    run_here(guarded, config, workspace, given, tmp_path)
    assert (workspace / "features").exists()
    assert told == []
    assert not (workspace / "lease.json").exists()
    with pytest.raises(PipelineError, match="ingest"):
        run_here(guarded, config, workspace, given | {"data": str(tmp_path / "nowhere")}, tmp_path)
    assert len(told) == 1
    assert told[0]["state"] == "FAILED"
    assert not (workspace / "lease.json").exists()
    take(workspace, "another", hours=1, wait_minutes=0)
    with pytest.raises(PipelineError, match="begin"):
        run_here(guarded, config, workspace, given, tmp_path)
    assert "The run another holds the workspace" in capfd.readouterr().out
    assert len(told) == 2
    assert json.loads((workspace / "lease.json").read_text())["run"] == "another"
