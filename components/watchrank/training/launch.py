"""A training in this process, on several processes of this machine, or on several nodes of a cluster."""

import subprocess
import sys

from watchrank.config import LaunchSettings
from watchrank.errors import JobError
from watchrank.termination import terminable
from watchrank.training.fit import Epoch
from watchrank.training.folders import read_curve
from watchrank.training.jobs import TrainingJob


def launch(job: TrainingJob, settings: LaunchSettings) -> list[Epoch]:
    """Train as the settings say; a run that was killed goes on from its checkpoint beside the output.

    Args:
        job: what to train, of which dataset, into which folder.
        settings: one process: this one; several on one node: under torchrun; several nodes: a TrainJob, and
            dataset and output are on the workspace's volume. SIGTERM and Ctrl-C end all of them.

    Returns:
        The learning curve.

    Raises:
        InputError: in this process, bad input; of several nodes, a setting is missing.
        JobError: a process or the TrainJob failed; it says why in one sentence.
    """
    if settings.nodes == settings.processes == 1:
        return job.train()
    job.failure.unlink(missing_ok=True)
    try:
        if settings.nodes == 1:
            _run_processes(job, settings.processes)
        else:
            from watchrank.training.train_job import run_train_job

            run_train_job(job, settings)
    except JobError as error:
        if not job.failure.exists():
            raise
        reason = job.failure.read_text().rstrip(".")
        raise JobError(f"{str(error).rstrip('.')}, because of {reason}.") from None
    return read_curve(job.output)


def _run_processes(job: TrainingJob, processes: int) -> None:
    """Train under torchrun, whose output is that of this process."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    worker = ["--nproc-per-node", str(processes), "-m", "watchrank.training.worker", job.model_dump_json()]
    with terminable(), subprocess.Popen([*torchrun, *worker]) as running:
        try:
            code = running.wait()
        except (KeyboardInterrupt, SystemExit):
            running.terminate()
            running.wait()
            raise
    if code:
        raise JobError(f"The training of {job.model} on {processes} processes ended with exit code {code}.")
