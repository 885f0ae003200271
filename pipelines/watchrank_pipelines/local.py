"""Run a pipeline on this machine: the very components, each in a process of its own, and a real Triton."""

import re
import shutil
import warnings
from pathlib import Path
from typing import Any

from kfp import local

from watchrank.config import Config
from watchrank.deployment.local_server import LocalTriton
from watchrank.errors import WatchrankError
from watchrank.storage import atomic_path
from watchrank.workspace import Workspace
from watchrank_pipelines.parameters import arguments
from watchrank_pipelines.training import training_pipeline

_REPORTS = {
    "report": "ranking.html",
    "gate": "gate.md",
    "validation_report": "validation.html",
    "results": "metrics.json",
    "candidate_results": "candidate_metrics.json",
    "text_results": "text_metrics.json",
    "recommendations": "recommendations.md",
}


class PipelineError(WatchrankError):
    """A task of a local run failed; what it printed stands above."""


def run_training(
    config: Config, workspace: Path, *, data: Path | None, source: str, feature_repo: Path, triton_venv: Path
) -> Path:
    """Run the training pipeline through `kfp.local`, with a local Triton beside it.

    Args:
        config: all settings; where Triton listens is set by the run.
        workspace: folder that keeps what outlives the run.
        data: folder of the log; None simulates one.
        source: format of the log.
        feature_repo: folder of the Feast definitions.
        triton_venv: the environment of Triton.

    Returns:
        The folder of the run's reports: `ranking.html`, `gate.md`, `validation.html`, `metrics.json`,
        `candidate_metrics.json`, `text_metrics.json`, `recommendations.md`.

    Raises:
        PipelineError: a task failed.
        DeploymentError: Triton did not start.
    """
    place = Workspace(workspace.absolute())
    warnings.filterwarnings("ignore", message=".*have no effect in the current local runner")
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(place.runs))
    with LocalTriton(venv=triton_venv, repository=place.model_repository, state=place.triton) as server:
        here = config.model_copy(update={"deployment": server.reached_by(config.deployment)})
        given = {
            "workspace": str(place.root),
            "data": str(data.absolute()) if data else "",
            "source": source,
            "feature_repo": str(feature_repo.absolute()),
            "model_repository": str(place.model_repository),
        }
        try:
            run = training_pipeline(**arguments(training_pipeline, here, given))
        except RuntimeError as error:
            raise PipelineError(f"{_plain(error)} Its output stands above.") from None
    return _collect(run.outputs, place.reports)


def _collect(outputs: dict[str, Any], reports: Path) -> Path:
    """Copy the run's reports to one folder, under names that a browser understands."""
    with atomic_path(reports) as fresh:
        fresh.mkdir()
        for name, file in _REPORTS.items():
            shutil.copy(outputs[name].path, fresh / file)
    return reports


def _plain(error: RuntimeError) -> str:
    return re.sub(r"\x1b\[[0-9]*m", "", str(error))
