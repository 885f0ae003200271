"""Feast's registry in a real Postgres, by the configuration file alone."""

import multiprocessing
from datetime import UTC, datetime

import numpy as np
import psycopg
import pytest
from feast import FeatureStore

from watchrank.errors import InputError
from watchrank.feature_store import materialise, online_user_features, open_store
from watchrank.schema import FEATURE_TABLES


@pytest.fixture
def file(repository):
    return repository / "feature_repo" / "feature_store_sql.yaml"


@pytest.fixture
def registry(postgres, redis, request, monkeypatch):
    """Lead to a new database; online features are in a part of Redis that no other test has."""
    with psycopg.connect(**connection(postgres), autocommit=True) as server:
        name = f"registry_{abs(hash(request.node.name))}"
        server.execute(f"create database {name}")
    for variable, value in (postgres | {"PGDATABASE": name, "WATCHRANK_REDIS": f"{redis},db=2"}).items():
        monkeypatch.setenv(variable, value)
    return postgres | {"PGDATABASE": name}


def connection(variables):
    names = {"PGHOST": "host", "PGPORT": "port", "PGUSER": "user", "PGPASSWORD": "password"}
    return {key: variables[name] for name, key in names.items()} | {"dbname": variables["PGDATABASE"]}


def test_the_registry_in_postgres_serves_as_the_one_in_a_file(registry, prepared, file, tmp_path):
    in_postgres = open_store(file, prepared.place.features, tmp_path)
    in_file = open_store(file.parent, prepared.place.features, tmp_path / "file")
    answers = []
    for store in (in_postgres, in_file):
        materialise(store, datetime.now(UTC))
        answers.append(online_user_features(store, [*range(300), 10**12]))
    for name, values in answers[1].items():
        np.testing.assert_array_equal(answers[0][name], values, err_msg=name)
    assert (answers[0]["watched_video_ids"] != -1).any()


def test_definitions_are_kept_in_postgres(registry, prepared, file, tmp_path):
    open_store(file, prepared.place.features, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WATCHRANK_STATE", str(tmp_path / "elsewhere"))
        found = FeatureStore(fs_yaml_file=file).list_feature_views()
    assert {view.name for view in found} == {table.name for table in FEATURE_TABLES}
    with psycopg.connect(**connection(registry)) as server:
        (count,) = server.execute("select count(*) from feature_views").fetchone()
    assert count == len(FEATURE_TABLES)


def test_tasks_that_start_together_make_the_registry_once(registry, prepared, file, tmp_path):
    processes = multiprocessing.get_context("fork")
    start = processes.Barrier(4)

    def opened():
        start.wait()
        open_store(file, prepared.place.features, tmp_path)

    tasks = [processes.Process(target=opened) for _ in range(4)]
    for task in tasks:
        task.start()
    for task in tasks:
        task.join(60)
        task.kill()
    assert [task.exitcode for task in tasks] == [0] * 4
    with psycopg.connect(**connection(registry)) as server:
        (count,) = server.execute("select count(*) from feature_views").fetchone()
    assert count == len(FEATURE_TABLES)


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [("PGPORT", "1", "Connection refused"), ("PGPASSWORD", "hemlig", "password authentication failed")],
)
def test_a_registry_that_does_not_answer_is_named(
    variable, value, reason, registry, prepared, file, tmp_path, monkeypatch
):
    monkeypatch.setenv(variable, value)
    with pytest.raises(InputError, match=rf"registry of .*_sql\.yaml does not answer: .*{reason}") as refusal:
        open_store(file, prepared.place.features, tmp_path)
    assert "hemlig" not in str(refusal.value)
    assert registry["PGPASSWORD"] not in str(refusal.value)


def test_a_missing_variable_is_named(registry, prepared, file, tmp_path, monkeypatch):
    monkeypatch.delenv("PGUSER")
    with pytest.raises(InputError, match="needs the environment variable PGUSER"):
        open_store(file, prepared.place.features, tmp_path)
