"""What a training run on a schedule is told: its window, and the release that it starts from.

Both follow from the day that the window ends on and from what serves, so that a run which is repeated for a
day does the same again, also after it has made its release.
"""

from dataclasses import dataclass
from datetime import date
from pathlib import Path

from watchrank import events as event_files
from watchrank.config import SplitSettings
from watchrank.errors import InputError
from watchrank.releases import read_manifest


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The window of a run, with its last day, and the release whose weights it starts from, if any."""

    split: SplitSettings
    start: Path | None


def plan(
    events: Path,
    until: str,
    split: SplitSettings,
    champion: Path | None,
    *,
    warm_start: bool = True,
    step_back: bool = False,
) -> Plan:
    """Plan a run.

    Args:
        events: folder of the events.
        until: last day of the window, as 2026-01-31; empty for `split.until`, or else the log's last.
        split: the other settings of the window.
        champion: the release that serves, among those that it came from; None for none.
        warm_start: whether to start from the weights of what serves.
        step_back: whether the window may end before that of what serves.

    Raises:
        InputError: `until` is no day, the events do not reach it, or what serves is of a later one.
    """
    last = max(event_files.days(events), default=None)
    try:
        day = date.fromisoformat(until) if until else split.until or last
    except ValueError:
        raise InputError(
            f"The run's until is {until!r}, which is no day; give one such as 2026-01-31."
        ) from None
    if day is None or last is None or day > last:
        raise InputError(
            f"The events in {events} reach up to {last or 'no day'}, the window of this run up to {day}; "
            "bring in the log of that day first."
        )
    served = read_manifest(champion).get("until") if champion and champion.exists() else None
    if served and served > str(day) and not step_back:
        raise InputError(
            f"What serves is of the window up to {served}, this run of the one up to {day}, which would be a "
            "step back. Leave until empty, use the rollback pipeline, or give step_back=true."
        )
    origin = start(champion, day) if warm_start else None
    return Plan(split=split.model_copy(update={"until": day}), start=origin)


def start(champion: Path | None, until: date) -> Path | None:
    """Return the release that a run for a window starts from: what serves, unless it has seen that window.

    Then it is what that release itself started from, and so on: what a release is judged on must be new to
    the weights that it starts from, and a run that is repeated must not start from its own result.
    """
    if champion is None or not champion.exists():
        return None
    manifest = read_manifest(champion)
    learned_until, origin = manifest.get("until"), manifest.get("warm_started_from")
    if learned_until and learned_until < str(until):
        return champion
    return start(champion.parent / f"{origin:06d}", until) if origin else None
