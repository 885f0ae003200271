import logging

import pytest

from watchrank.errors import DeploymentError, InputError
from watchrank.serving.breaker import Breaker


class Part:
    """A part behind a breaker, with a clock that is set by hand."""

    def __init__(self):
        self.now, self.fails, self.asked = 0.0, False, 0
        self.breaker = Breaker("The part", 5, clock=lambda: self.now)

    def ask(self, error=DeploymentError):
        with self.breaker.watching():
            self.asked += 1
            if self.fails:
                raise error(f"failure {self.asked}")
        return True


@pytest.fixture
def part():
    return Part()


def test_after_a_failure_one_call_a_while_tries_again(part):
    part.fails = True
    for now in (0, 1, 4.9, 5, 6, 9.9, 10):
        part.now = now
        with pytest.raises(DeploymentError, match=f"failure {1 + (now >= 5) + (now >= 10)}"):
            part.ask()
    assert part.asked == 3
    part.now, part.fails = 15, False
    assert [part.ask() for _ in range(3)] == [True] * 3


def test_while_one_tries_the_others_are_refused(part):
    part.fails = True
    with pytest.raises(DeploymentError):
        part.ask()
    part.now, part.fails = 5, False
    with part.breaker.watching():
        with pytest.raises(DeploymentError, match="failure 1"):
            part.ask()
        assert part.asked == 1
    assert part.ask()


def test_bad_input_is_no_failure_of_the_part(part):
    part.fails = True
    with pytest.raises(InputError):
        part.ask(InputError)
    part.fails = False
    assert part.ask()


def test_the_first_failure_and_the_recovery_are_logged(part, caplog):
    with caplog.at_level(logging.WARNING):
        for now, part.fails in ((0, True), (5, True), (10, False), (11, False)):
            part.now = now
            try:
                part.ask()
            except DeploymentError:
                continue
    assert [record.message for record in caplog.records] == [
        "The part fails: failure 1",
        "The part answers again.",
    ]
