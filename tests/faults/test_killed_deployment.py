"""SIGKILL at random moments of deploying and rolling back: callers are answered by one whole release."""

import pytest

from watchrank.deployment import model_repository

from .conftest import Runner, random_of
from .contents import contents, left_behind
from .served import Served

pytestmark = pytest.mark.faults


def test_a_killed_deployment_leaves_a_whole_release_and_ends_as_an_uninterrupted_one(
    served: Served, runner: Runner, kills: int
) -> None:
    random, repository, done = random_of("deploy"), served.place.model_repository, 0
    programs = {number: served.program("deploy", "--release", number, keep=1) for number in (1, 2)}
    expected = {}
    for number, program in programs.items():
        seconds = runner.end(program)
        expected[number] = contents(repository)
    now = 2
    with served.asking() as answered:
        while done < kills:
            now = 3 - now
            for _ in range(min(random.randint(1, 4), kills - done)):
                done += runner.start(programs[now]).kill_after(random.uniform(0, seconds))
            runner.end(programs[now])
            assert served.serves() == now
            assert contents(repository) == expected[now]
            assert left_behind(repository) == []
    assert {*answered} == {1, 2}


def test_a_killed_rollback_leaves_a_whole_release_and_ends_as_an_uninterrupted_one(
    served: Served, runner: Runner, kills: int
) -> None:
    random, repository, done = random_of("rollback"), served.place.model_repository, 0
    forward, back = served.program("deploy", "--release", 2), served.program("rollback")
    runner.end(served.program("deploy", "--release", 1))
    runner.end(forward)
    seconds = runner.end(back)
    expected = contents(repository)
    with served.asking() as answered:
        while done < kills:
            runner.end(forward)
            for _ in range(min(random.randint(1, 4), kills - done)):
                done += runner.start(back).kill_after(random.uniform(0, seconds))
            if model_repository.serving(repository, "recommend") == 2:
                runner.end(back)
            else:  # it had switched: another rollback would go one release further
                runner.end(served.program("deploy", "--release", 1))
            assert served.serves() == 1
            assert contents(repository) == expected
            assert left_behind(repository) == []
    assert {*answered} == {1, 2}


def test_of_two_deployments_at_once_one_waits(served: Served, runner: Runner, second_runner: Runner) -> None:
    programs = [served.program("deploy", "--release", number) for number in (1, 2)]
    runner.end(programs[0])
    with served.asking():
        runs = [each.start(program) for each, program in zip((runner, second_runner), programs, strict=True)]
        assert [run.wait() for run in runs] == [0, 0], "".join(run.stderr for run in runs)
    assert served.serves() == model_repository.serving(served.place.model_repository, "recommend")
    assert model_repository.releases(served.place.model_repository) == [1, 2]
