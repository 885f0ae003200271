"""Runs programs of `watchrank` in forks of one process that has imported everything: a kill then meets work.

Reads lines [program, folder for its output] and answers each with the fork's process id, then its exit code.
The fork leads a process group of its own.
"""

import json
import os
import sys
import traceback
from pathlib import Path

import feast  # noqa: F401
import tritonclient.grpc  # noqa: F401

import watchrank.cli
import watchrank.deployment.deploy
import watchrank.export.release
import watchrank.features
import watchrank.ingestion
import watchrank.offline_store
import watchrank.registry_store  # noqa: F401


def run(program: str, output: Path) -> None:
    """Run a program in this process, and end that at once: a fork cannot wait for the threads it lacks."""
    os.setsid()
    for stream, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(output / name, os.O_WRONLY | os.O_TRUNC), stream)
    code: object = 0
    try:
        exec(program, {})
    except SystemExit as end:
        code = end.code
    except Exception:  # noqa: BLE001
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0)


print("ready", flush=True)
for line in sys.stdin:
    program, output = json.loads(line)
    process = os.fork()
    if process == 0:
        run(program, Path(output))
    print(process, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
