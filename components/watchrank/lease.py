"""One run at a time in a workspace: a lease that the first step of a run takes and the last gives back.

A lock of the file system goes with its process. A run on Kubeflow is many processes, so it leaves a note in
the workspace instead, `lease.json`: whose the workspace is, and until when, should the run never end.
"""

import json
import logging
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from watchrank.errors import InputError, WatchrankError
from watchrank.storage import locked, write_json

logger = logging.getLogger(__name__)

NOTE = "lease.json"
_POLL_SECONDS = 5.0


class HeldError(WatchrankError):
    """Another run holds the workspace."""


def take(workspace: Path, run: str, *, hours: float, wait_minutes: float) -> None:
    """Take a workspace for a run; while another run holds it, wait. A run that has it already keeps it.

    Args:
        workspace: its folder; made when it is not there.
        run: the run's id, the same in all its steps.
        hours: when the lease ends by itself, as that of a run which was deleted and could not give it back.
        wait_minutes: how long to wait for another run; 0 refuses at once.

    Raises:
        HeldError: another run still holds it.
        InputError: the note in the workspace cannot be read.
    """
    deadline = time.monotonic() + wait_minutes * 60
    while holder := _take(workspace, run, timedelta(hours=hours)):
        left = deadline - time.monotonic()
        if left <= 0:
            raise HeldError(
                f"The run {holder['run']} holds the workspace {workspace} since {holder['since']}. "
                f"Wait for it or stop it; if it is gone, delete {workspace / NOTE}."
            )
        logger.info("Waiting for the run %s, which holds the workspace.", holder["run"])
        time.sleep(min(_POLL_SECONDS, left))


def give_back(workspace: Path, run: str) -> bool:
    """Give a workspace back; return whether the run had it. Another run's lease stays."""
    if not (workspace / NOTE).exists():
        return False
    with locked(workspace):
        holder = _holder(workspace)
        if holder is None or holder["run"] != run:
            return False
        (workspace / NOTE).unlink()
    return True


def _take(workspace: Path, run: str, length: timedelta) -> dict[str, str] | None:
    """Take the workspace, or return the note of the run that holds it."""
    with locked(workspace):
        now, holder = datetime.now(UTC), _holder(workspace)
        if holder and holder["run"] != run and now < datetime.fromisoformat(holder["until"]):
            return holder
        times = {"since": now, "until": now + length}
        note = {name: value.isoformat(timespec="seconds") for name, value in times.items()}
        write_json(workspace / NOTE, note | {"run": run})
    return None


def _holder(workspace: Path) -> dict[str, str] | None:
    path = workspace / NOTE
    if not path.exists():
        return None
    try:
        holder: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
        holder["run"], holder["since"], datetime.fromisoformat(holder["until"]).utctimetuple()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({error}); delete it if no run is on its way.") from None
    return holder
