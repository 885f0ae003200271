"""Writes that are either whole or not there: a temporary path beside the target, then one rename."""

import fcntl
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; rename it to `target` when the block ends well.

    The block may create a file or a folder there. On an error the temporary path is removed and
    `target` stays as it was. A folder that exists is replaced as a whole.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    holder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        fresh = holder / target.name
        yield fresh
        if target.is_dir():
            target.rename(holder / "replaced")
        fresh.replace(target)
    finally:
        shutil.rmtree(holder, ignore_errors=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which is made when it is not there; wait while another process holds it.

    The lock goes with the process, also when it is killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_json(target: Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, atomically."""
    with atomic_path(target) as fresh:
        fresh.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
