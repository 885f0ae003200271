import json
import multiprocessing
import threading

import pytest

from watchrank.errors import InputError
from watchrank.lease import NOTE, HeldError, give_back, take


def test_a_workspace_has_one_run_at_a_time_and_is_free_when_given_back(tmp_path):
    take(tmp_path / "work", "first", hours=1, wait_minutes=0)
    take(tmp_path / "work", "first", hours=1, wait_minutes=0)  # a step that is tried again
    with pytest.raises(HeldError, match=r"The run first holds the workspace .* since 2.*lease.json"):
        take(tmp_path / "work", "second", hours=1, wait_minutes=0)
    assert not give_back(tmp_path / "work", "second")
    assert give_back(tmp_path / "work", "first")
    assert not give_back(tmp_path / "work", "first")
    take(tmp_path / "work", "second", hours=1, wait_minutes=0)


def test_giving_back_makes_no_workspace(tmp_path):
    assert not give_back(tmp_path / "none", "run")
    assert not (tmp_path / "none").exists()


def test_a_run_that_never_ended_loses_its_lease(tmp_path):
    take(tmp_path, "gone", hours=0, wait_minutes=0)
    take(tmp_path, "next", hours=1, wait_minutes=0)
    assert json.loads((tmp_path / NOTE).read_text())["run"] == "next"


def test_a_run_waits_for_another(tmp_path, monkeypatch):
    monkeypatch.setattr("watchrank.lease._POLL_SECONDS", 0.01)
    take(tmp_path, "first", hours=1, wait_minutes=0)
    giving_back = threading.Timer(0.2, give_back, (tmp_path, "first"))
    giving_back.start()
    take(tmp_path, "second", hours=1, wait_minutes=5)
    giving_back.join()
    assert json.loads((tmp_path / NOTE).read_text())["run"] == "second"


def take_one(folder, run, won):
    try:
        take(folder, run, hours=1, wait_minutes=0)
        won.put(run)
    except HeldError:
        pass


def test_of_many_at_once_one_gets_it(tmp_path):
    context = multiprocessing.get_context("spawn")
    won = context.Queue()
    runs = [context.Process(target=take_one, args=(tmp_path, f"run {n}", won)) for n in range(6)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert json.loads((tmp_path / NOTE).read_text())["run"] == won.get()
    assert won.empty()


@pytest.mark.parametrize("note", ["", "[]", '{"run": "a"}', '{"run": "a", "since": "b", "until": "never"}'])
def test_a_broken_note_is_told_of(tmp_path, note):
    (tmp_path / NOTE).write_text(note)
    with pytest.raises(InputError, match=r"lease\.json cannot be read"):
        take(tmp_path, "run", hours=1, wait_minutes=0)
