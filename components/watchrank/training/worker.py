"""What every process of a training runs: `torchrun ... -m watchrank.training.worker <job as JSON>`."""

import logging
import sys
from contextlib import suppress

from pydantic import TypeAdapter

from watchrank.training.jobs import TrainingJob


def main() -> None:
    """Train what the first word says; the first process that fails writes why to the job's `failure`."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("watchrank").setLevel(logging.INFO)
    job: TrainingJob = TypeAdapter(TrainingJob).validate_json(sys.argv[1])
    try:
        job.train()
    except Exception as error:
        reason = " ".join(str(error).split())
        job.failure.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError), job.failure.open("x") as file:
            file.write(f"{type(error).__name__}: {reason}")
        raise


if __name__ == "__main__":
    main()
