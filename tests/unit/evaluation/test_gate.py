"""The gate on answers whose quality is known."""

import json

import numpy as np
import pytest

from watchrank.config import GateSettings, ToleranceSettings
from watchrank.errors import GateError
from watchrank.evaluation.champion import Champion
from watchrank.evaluation.comparisons import TaskAnswers
from watchrank.evaluation.gate import decide

USERS, EACH = 500, 24
N = USERS * EACH
RNG = np.random.default_rng(0)
user = np.repeat(np.arange(USERS) * 7, EACH)
feed = np.arange(N) % 3 == 0
segments = {"feed": feed, "home": ~feed, "new users": user < 7 * 80}
probability = RNG.beta(1, 3, N)
clicked = (RNG.random(N) < probability).astype(float)
expected = probability * RNG.gamma(4, 10, N)
seconds = clicked * RNG.gamma(4, 1 / 4, N) * expected / probability
SETTINGS = GateSettings(resamples=200)


def watch_time(noise, seed, rows=slice(None)):
    """Seconds whose logarithm is off by `noise` in some rows; their sum in each segment is right."""
    errors = np.zeros(N)
    errors[rows] = np.random.default_rng(seed).normal(0, noise, N)[rows]
    answers = expected * np.exp(errors)
    for segment in (feed, ~feed):
        answers[segment] *= seconds[segment].sum() / answers[segment].sum()
    return answers


BASELINES = {"video mean": watch_time(2.5, 9), "global mean": np.full(N, seconds.mean())}


def watched(challenger, champion=None):
    return TaskAnswers(
        output="expected_watch_time",
        kind="watch_time",
        label=seconds,
        challenger=challenger,
        champion=champion,
        baselines=BASELINES,
    )


def click(challenger, champion=None, label=clicked):
    return TaskAnswers(
        output="click_probability",
        kind="binary",
        label=label,
        challenger=challenger,
        champion=champion,
        baselines={"video mean": RNG.permutation(probability), "global mean": np.full(N, 0.25)},
    )


def release(*tasks):
    return Champion(release="000007", tasks=frozenset(tasks))


SERVES = release("expected_watch_time")


def decided(challenger, champion, settings=SETTINGS):
    return decide([watched(challenger, champion)], user, segments, settings, SERVES)


def check(decision, name):
    return next(check for check in decision.checks if check.name == name)


def tolerating(share):
    return SETTINGS.model_copy(update={"tolerances": ToleranceSettings(per_user_loss=share)})


FORCED = SETTINGS.model_copy(update={"force": True})
LOSS = "expected_watch_time/all/per_user_loss/champion"


def test_a_challenger_that_is_better_or_equal_passes():
    equal = watch_time(0.5, 1)
    for challenger in (watch_time(0.1, 2), watch_time(0.5, 2), equal):
        decision = decided(challenger, equal)
        assert decision.passed, decision.reasons
        assert not decision.forced
        assert not decision.reasons
        decision.require()
    same = check(decision, LOSS)
    assert (same.difference, same.low, same.high) == (0, 0, 0)
    better = check(decided(watch_time(0.1, 2), equal), LOSS)
    assert better.high < 0, "the champion's value is taken from the challenger's"
    assert better.difference == pytest.approx(better.challenger - better.reference)
    assert better.low < better.difference < better.high


def test_a_challenger_that_is_worse_beyond_the_tolerance_is_refused():
    decision = decided(watch_time(1.5, 2), watch_time(0.5, 1))
    assert not decision.passed
    failed = check(decision, LOSS)
    assert failed.low > failed.tolerance == pytest.approx(0.03 * failed.reference)
    assert failed.reason in decision.reasons
    assert "against the champion's" in failed.reason
    with pytest.raises(GateError, match="expected_watch_time: per_user_loss"):
        decision.require()


def test_a_challenger_that_is_worse_within_the_tolerance_passes():
    challenger, champion = watch_time(0.7, 2), watch_time(0.5, 1)
    tight, wide = (decided(challenger, champion, tolerating(share)) for share in (0, 0.2))
    worse = check(wide, LOSS)
    assert 0 < worse.low <= worse.difference < worse.tolerance
    assert wide.passed
    assert not tight.passed


def test_what_may_be_chance_does_not_refuse():
    """A difference beyond the tolerance, on so few users that its interval reaches into it."""
    few = user < 7 * 25
    settings = tolerating(0)
    task = watched(watch_time(0.62, 2), watch_time(0.5, 1))
    part = TaskAnswers(
        output=task.output,
        kind=task.kind,
        label=task.label[few],
        challenger=task.challenger[few],
        champion=task.champion[few],
        baselines={},
    )
    of_few = decide([part], user[few], {}, settings, SERVES)
    assert check(of_few, LOSS).difference > 0 > check(of_few, LOSS).low
    assert check(of_few, LOSS).passed
    assert not check(decide([task], user, {}, settings, SERVES), LOSS).passed


def test_a_higher_auc_is_better():
    good, bad = probability, np.clip(probability + np.random.default_rng(5).normal(0, 0.2, N), 0.01, 0.99)
    serves = release("click_probability")
    auc = "click_probability/all/auc/champion"
    assert check(decide([click(good, bad)], user, {}, SETTINGS, serves), auc).passed
    worse = check(decide([click(bad, good)], user, {}, SETTINGS, serves), auc)
    assert not worse.passed
    assert worse.high < -worse.tolerance
    assert worse.direction == "higher"


def test_only_impressions_whose_label_is_known_count():
    label = np.where(np.arange(N) % 2, clicked, -1)
    wrong_elsewhere = np.where(label >= 0, probability, 0.999)
    serves = release("click_probability")
    decision = decide([click(wrong_elsewhere, probability, label)], user, segments, SETTINGS, serves)
    assert decision.passed, decision.reasons
    assert check(decision, "click_probability/all/log_loss/champion").difference == 0
    none = decide([click(probability, probability, np.full(N, -1.0))], user, segments, SETTINGS, serves)
    assert none.reasons == ["click_probability: no impression of the test window has its label"]


def test_answers_that_are_not_finite_are_refused():
    broken = watch_time(0.5, 1)
    broken[5] = np.nan
    assert decided(broken, watch_time(0.5, 1)).reasons == [
        "expected_watch_time: the challenger's answers are not all finite"
    ]


def test_a_task_that_the_champion_lacks_must_beat_its_baselines():
    champion = watch_time(0.5, 1)
    both = [watched(champion, champion), click(probability)]
    decision = decide(both, user, segments, SETTINGS, SERVES)
    assert decision.passed, decision.reasons
    against = {check.task: set() for check in decision.checks}
    for each in decision.checks:
        against[each.task].add(each.against)
    assert against["expected_watch_time"] == {"champion", "bounds"}
    assert against["click_probability"] == {"video mean", "global mean", "bounds"}
    useless = decide([both[0], click(np.full(N, clicked.mean()))], user, {}, SETTINGS, SERVES)
    assert not useless.passed
    assert all(reason.startswith("click_probability") for reason in useless.reasons)
    assert "not better beyond chance" in useless.reasons[0]


def test_a_task_that_only_the_champion_has_is_a_failure_unless_allowed():
    task, serves = [watched(watch_time(0.5, 1))], release("expected_watch_time", "like_probability")
    decision = decide(task, user, {}, SETTINGS, serves)
    assert decision.reasons == ["like_probability: the champion serves it, the challenger does not"]
    allowed = decide(task, user, {}, SETTINGS.model_copy(update={"allow_fewer_tasks": True}), serves)
    assert allowed.passed
    assert any("like_probability" in note for note in allowed.notes)


def test_a_first_release_must_beat_its_baselines():
    first = decide([watched(watch_time(0.5, 1))], user, segments, SETTINGS)
    assert first.passed, first.reasons
    assert first.champion is None
    assert any("first release" in note for note in first.notes)
    no_better = decide([watched(watch_time(2.5, 3))], user, {}, SETTINGS)
    assert [check.against for check in no_better.checks if not check.passed] == ["video mean"]


def test_calibration_has_bounds_of_its_own():
    champion = 1.3 * watch_time(0.5, 1)
    for factor, passed in ((1.0, True), (1.3, False), (0.75, False)):
        decision = decided(factor * watch_time(0.5, 2), champion)
        assert check(decision, "expected_watch_time/all/sum_ratio/bounds").passed is passed
    assert "sum_ratio 0.75" in " ".join(decision.reasons)


def test_one_bad_segment_refuses_though_the_whole_is_fine():
    champion = watch_time(0.5, 1)
    unfair = champion.copy()
    new = segments["new users"]
    unfair[new] *= 1.4
    decision = decided(unfair, champion)
    assert check(decision, "expected_watch_time/all/sum_ratio/bounds").passed
    assert [each.name for each in decision.checks if not each.passed] == [
        "expected_watch_time/new users/calibration_error/champion"
    ]
    blind = np.where(new, watch_time(4.0, 4, new), watch_time(0.3, 2))
    failed = [each.name for each in decided(blind, champion, tolerating(10)).checks if not each.passed]
    assert "expected_watch_time/new users/per_user_loss/champion" in failed
    assert LOSS not in failed
    small = SETTINGS.model_copy(update={"min_segment_impressions": int(new.sum()) + 1})
    of_small = decided(unfair, champion, small)
    assert of_small.passed
    assert any("not judged: new users" in note for note in of_small.notes)


def test_force_passes_and_keeps_the_reasons():
    bad, champion = watch_time(1.5, 2), watch_time(0.5, 1)
    refused, forced = decided(bad, champion), decided(bad, champion, FORCED)
    assert forced.passed
    assert forced.forced
    assert forced.reasons == refused.reasons != []
    forced.require()
    assert "forced" in forced.verdict
    assert not decided(champion, champion, FORCED).forced


def test_the_decision_is_written_as_json_and_as_a_table(tmp_path):
    """Also where a value cannot be measured: no one watched anything in the feed."""
    label = np.where(feed, 0.0, seconds)
    task = TaskAnswers(
        output="expected_watch_time",
        kind="watch_time",
        label=label,
        challenger=np.where(feed, 1e-3, expected),
        champion=np.where(feed, 1e-3, watch_time(2.0, 1)),
        baselines=BASELINES,
    )
    decision = decide([task], user, segments, SETTINGS, SERVES)
    decision.write(tmp_path / "evaluation")
    written = json.loads(
        (tmp_path / "evaluation" / "gate.json").read_text(),
        parse_constant=lambda name: pytest.fail(f"{name} is no JSON"),
    )
    assert written["passed"] is True
    assert written["champion"] == "000007"
    assert len(written["checks"]) == len(decision.checks) == 8
    assert written["reasons"] == []
    unmeasured = next(
        c for c in written["checks"] if c["name"].startswith("expected_watch_time/feed/per_user")
    )
    assert unmeasured["challenger"] is None
    assert "cannot be measured" in unmeasured["reason"]
    lines = (tmp_path / "evaluation" / "gate.md").read_text().splitlines()
    assert lines[0] == "The challenger passes; champion: release 000007."
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + len(decision.checks)
    assert len({line.count("|") for line in table}) == 1


def test_a_decision_is_the_same_each_time():
    first, again = (decided(watch_time(0.6, 2), watch_time(0.5, 1)) for _ in range(2))
    assert first == again
