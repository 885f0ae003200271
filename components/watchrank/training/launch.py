"""A training in this process, on several processes of this machine, or on several nodes of a cluster."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from watchrank.config import LaunchSettings
from watchrank.errors import JobError
from watchrank.storage import atomic_path
from watchrank.termination import terminable
from watchrank.training.fit import Epoch
from watchrank.training.folders import read_curve
from watchrank.training.jobs import TrainingJob


def launch(job: TrainingJob, settings: LaunchSettings) -> list[Epoch]:
    """Train as the settings say; a run that was killed goes on from its checkpoint beside the output.

    Args:
        job: what to train, of which dataset, into which folder.
        settings: one process: this one; several on one node: under torchrun; several nodes: a TrainJob, by
            way of the workspace's volume. SIGTERM and Ctrl-C end all of them.

    Returns:
        The learning curve.

    Raises:
        InputError: in this process, bad input; of several nodes, a setting is missing.
        JobError: a process or the TrainJob failed; it says why in one sentence.
    """
    if settings.nodes == settings.processes == 1:
        return job.train()
    if settings.nodes == 1:
        with _explained(job):
            _run_processes(job, settings.processes)
    else:
        from watchrank.training.train_job import run_train_job

        with _on_the_volume(job, settings) as shared, _explained(shared):
            run_train_job(shared, settings)
    return read_curve(job.output)


@contextmanager
def _on_the_volume(job: TrainingJob, settings: LaunchSettings) -> Iterator[TrainingJob]:
    """Yield the job as other pods can do it: on the volume that they share, to which its dataset is copied.

    A job that lies there already is left where it is. When the block ends well, the model is copied back;
    when it fails, the next try of the same training finds its checkpoint.
    """
    volume = settings.workspace_path
    lies_there = job.dataset.is_relative_to(volume) and job.output.is_relative_to(volume)
    if lies_there or not (settings.workspace_claim and volume.is_dir()):
        yield job
        return
    folder = volume / "training" / job.content
    shared = job.model_copy(update={"dataset": folder / "dataset", "output": folder / "model"})
    if not shared.dataset.exists():
        with atomic_path(shared.dataset) as fresh:
            shutil.copytree(job.dataset, fresh)
    yield shared
    with atomic_path(job.output) as fresh:
        shutil.copytree(shared.output, fresh)
    shutil.rmtree(folder)


@contextmanager
def _explained(job: TrainingJob) -> Iterator[None]:
    """Add to the failure of a job what the first process that failed left as its reason."""
    job.failure.unlink(missing_ok=True)
    try:
        yield
    except JobError as error:
        if not job.failure.exists():
            raise
        reason = job.failure.read_text().rstrip(".")
        raise JobError(f"{str(error).rstrip('.')}, because of {reason}.") from None


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
