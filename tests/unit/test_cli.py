import json
import subprocess
import sys

import pytest

WATCHRANK = [sys.executable, "-c", "from watchrank.cli import main; main()"]
SMALL = [
    f"--set=simulation.{setting}" for setting in ("impressions=2000", "users=50", "videos=60", "channels=9")
]


def watchrank(*arguments, cwd):
    return subprocess.run(
        [*WATCHRANK, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_help_lists_the_stages_and_explains_options(tmp_path):
    shown = watchrank("--help", cwd=tmp_path).stdout
    for stage in (
        "simulate",
        "ingest",
        "validate",
        "features",
        "dataset",
        "train",
        "evaluate",
        "export",
        "deploy",
    ):
        assert stage in shown
    assert "folder of the log" in " ".join(watchrank("ingest", "--help", cwd=tmp_path).stdout.split())


def test_stages_run_one_by_one(tmp_path):
    small = [*SMALL, "--set", "validation.min_rows_a_day=5", "--set", "validation.max_user_share=1"]
    for stage in ("simulate", "ingest", "validate"):
        done = watchrank(stage, *small, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert (
        json.loads((tmp_path / "work/events/manifest.json").read_text())["tables"]["impressions"]["rows"]
        == 2000
    )


def test_a_workspace_holds_one_simulated_log(tmp_path):
    assert watchrank("simulate", *SMALL, cwd=tmp_path).returncode == 0
    before = (tmp_path / "work/log/users.parquet").stat().st_mtime_ns
    assert watchrank("simulate", *SMALL, cwd=tmp_path).returncode == 0
    other = watchrank("simulate", *SMALL, "--set", "simulation.seed=7", cwd=tmp_path)
    assert other.returncode == 2
    assert "other settings; give another workspace" in other.stderr
    assert (tmp_path / "work/log/users.parquet").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["ingest", "--data", "nowhere"], 2, "nowhere"),
        (
            ["ingest", "--data", "gs://bucket/log"],
            2,
            "gs://bucket/log is no log; give the path of a folder or",
        ),
        (["ingest", "--source", "tiktok"], 2, "give one of own, kuairand"),
        (["settings", "--set", "training.epocs=3"], 2, "training.epocs: Extra inputs are not permitted"),
        (["settings", "--set", "training"], 2, "Write section.key=value"),
        (["settings", "--set", "training.epochs=many"], 2, "training.epochs"),
        (
            ["settings", "--set", "ranking.hidden=640"],
            2,
            "ranking.hidden: Value error, must be one of none, 256",
        ),
        (["settings", "--config", "missing.yaml"], 2, "missing.yaml"),
        (["validate"], 2, "run `watchrank ingest`"),
        (["train"], 2, "run `watchrank dataset`"),
        (["evaluate"], 2, "run `watchrank dataset`"),
        (["search-dataset"], 2, "run `watchrank ingest`"),
        (["train-text"], 2, "run `watchrank search-dataset`"),
        (["evaluate-text"], 2, "run `watchrank search-dataset`"),
        (["study", "hidden"], 2, "run `watchrank dataset`"),
        (["study", "colours"], 2, "There are: hidden, inputs, objective, weighting"),
        (["export"], 2, "Run `watchrank evaluate`"),
        (["deploy"], 2, "has no release"),
        (["push", "--store", "store"], 2, "has no release"),
        (["push"], 2, "Missing option '--store'"),
        (["rollback", "--store", "store"], 2, "holds no release before the first"),
        (["rollback", "--model-repository", "gs://bucket"], 2, "gs://bucket is no model repository"),
        (["releases", "--model-repository", "gs://bucket"], 2, "gs://bucket is no model repository"),
        (["releases", "--store", "gs://bucket"], 2, "give the path of a folder or s3://bucket/prefix"),
        (["follow", "--once", "--store", "store"], 2, "names no release to serve"),
        (["serve"], 2, "Run `make run` first"),
        (["recommend"], 2, "Missing argument"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_gets_one_sentence_and_an_exit_code(tmp_path, arguments, code, sentence):
    done = watchrank(*arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "work" / "events").exists()


def test_validation_failure_has_its_own_exit_code(tmp_path):
    for stage in ("simulate", "ingest"):
        assert watchrank(stage, *SMALL, cwd=tmp_path).returncode == 0
    done = watchrank("validate", "--set", "validation.min_rows_a_day=100000", cwd=tmp_path)
    assert done.returncode == 3
    assert done.stderr.startswith("ValidationError: days: rows must be at least")
