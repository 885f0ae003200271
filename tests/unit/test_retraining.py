from datetime import date, timedelta

import pytest

from watchrank.config import SplitSettings
from watchrank.errors import InputError
from watchrank.events import days
from watchrank.releases import MANIFEST
from watchrank.retraining import plan
from watchrank.storage import write_json


@pytest.fixture
def champion(tmp_path):
    """Make a release that serves, of the window up to a day."""

    def make(until):
        manifest = {"release": 3, "files": {}, "endpoints": [], "until": str(until)}
        write_json(tmp_path / "000003" / MANIFEST, manifest)
        return tmp_path / "000003"

    return make


def test_a_run_takes_the_logs_last_day_or_the_one_it_is_told(prepared, champion):
    events, last = prepared.place.events, max(days(prepared.place.events))
    split = SplitSettings(test_days=1, train_days=3)
    found = plan(events, "", split, None)
    assert found.split == SplitSettings(test_days=1, train_days=3, until=last)
    assert found.start is None
    day = last - timedelta(days=2)
    assert plan(events, str(day), split, None).split.until == day
    assert plan(events, "", SplitSettings(until=day), None).split.until == day
    serves = champion(day)
    assert plan(events, str(last), split, serves).start == serves
    assert plan(events, str(day), split, serves).start is None


def test_a_run_without_its_day_or_behind_what_serves_is_refused(prepared, champion):
    events, last = prepared.place.events, max(days(prepared.place.events))
    with pytest.raises(InputError, match=r"reach up to .* bring in the log of that day first"):
        plan(events, str(last + timedelta(days=1)), SplitSettings(), None)
    with pytest.raises(InputError, match="until is 'yesterday', which is no day"):
        plan(events, "yesterday", SplitSettings(), None)
    with pytest.raises(InputError, match=r"step back\. Leave until empty"):
        plan(events, str(last - timedelta(days=1)), SplitSettings(), champion(last))
    assert plan(events, str(last), SplitSettings(), champion(date(2020, 1, 1))).start is not None


def test_a_run_that_starts_from_nothing_is_held_to_what_serves_too(prepared, champion):
    events, last = prepared.place.events, max(days(prepared.place.events))
    serves, before = champion(last), str(last - timedelta(days=1))
    assert plan(events, "", SplitSettings(), serves, warm_start=False).start is None
    for warm_start in (True, False):
        with pytest.raises(InputError, match=r"would be a step back\. .*, or give step_back=true\.$"):
            plan(events, before, SplitSettings(), serves, warm_start=warm_start)
        found = plan(events, before, SplitSettings(), serves, warm_start=warm_start, step_back=True)
        assert (str(found.split.until), found.start) == (before, None)
    earlier = champion(last - timedelta(days=2))
    assert plan(events, before, SplitSettings(), earlier, warm_start=False).start is None
    assert plan(events, before, SplitSettings(), earlier).start == earlier
