"""Run a pipeline on this machine: the very components, each in a process of its own, and a real Triton."""

import contextlib
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kfp import local
from kfp.dsl.graph_component import GraphComponent

from watchrank.config import Config
from watchrank.deployment.local_server import LocalTriton
from watchrank.errors import WatchrankError
from watchrank.storage import atomic_path, locked
from watchrank.workspace import Workspace
from watchrank_pipelines.parameters import arguments

_SUFFIXES = {"system.HTML": ".html", "system.Markdown": ".md", "system.Dataset": ".json"}


class PipelineError(WatchrankError):
    """A task of a local run failed; what it printed stands above."""


def run_here(
    pipeline: GraphComponent, config: Config, workspace: Path, given: Mapping[str, str], triton_venv: Path
) -> Path:
    """Run a pipeline through `kfp.local`, with a local Triton beside it where it talks to one.

    Another run in the same workspace is waited for. A step that fails is not tried again.

    Args:
        pipeline: as it is defined, without the guard that Kubeflow's runs have.
        config: all settings; where Triton listens is set by the run.
        workspace: folder that keeps what outlives the run.
        given: the parameters that are no settings; paths may be relative.
        triton_venv: the environment of Triton.

    Returns:
        The folder of the run's reports: a file for each output of the pipeline, by its name.

    Raises:
        InputError: a parameter is missing or unknown.
        PipelineError: a task failed.
        DeploymentError: Triton did not start.
    """
    place = Workspace(workspace.absolute())
    inputs = pipeline.component_spec.inputs
    warnings.filterwarnings("ignore", message=".*have no effect in the current local runner")
    with locked(place.runs), _triton(place, config, triton_venv, wanted="deployment" in inputs) as here:
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(place.runs))
        places = {"workspace": place.root, "model_repository": place.model_repository}
        own = {name: str(path) for name, path in places.items() if name in inputs}
        values = arguments(pipeline, here, own | _absolute(given))
        _never_retry(pipeline)
        try:
            run = pipeline(**values)
        except RuntimeError as error:
            raise PipelineError(f"{_plain(error)} Its output stands above.") from None
        return _collect(run.outputs, place.reports)


@contextlib.contextmanager
def _triton(place: Workspace, config: Config, venv: Path, *, wanted: bool) -> Iterator[Config]:
    """Yield the configuration that names the local Triton, started if it is wanted."""
    if not wanted:
        yield config
        return
    with LocalTriton(venv=venv, repository=place.model_repository, state=place.triton) as server:
        yield config.model_copy(update={"deployment": server.reached_by(config.deployment)})


def _absolute(given: Mapping[str, str]) -> dict[str, str]:
    """Make paths absolute: each step runs in a folder of its own."""
    paths = {"data", "feature_repo", "request_log", "release_store"}
    return {
        name: str(Path(value).absolute()) if name in paths and value and "://" not in value else value
        for name, value in given.items()
    }


def _never_retry(pipeline: GraphComponent) -> None:
    """Let a failed step fail at once: here nobody waits for a server to come back."""
    spec = pipeline.pipeline_spec
    for dag in (spec.root.dag, *(component.dag for component in spec.components.values())):
        for task in dag.tasks.values():
            task.ClearField("retry_policy")


def _collect(outputs: dict[str, Any], reports: Path) -> Path:
    """Copy the run's outputs to one folder, under names that a browser understands."""
    with atomic_path(reports) as fresh:
        fresh.mkdir()
        for name, artifact in outputs.items():
            shutil.copy(artifact.path, fresh / f"{name}{_SUFFIXES[artifact.schema_title]}")
    return reports


def _plain(error: RuntimeError) -> str:
    return re.sub(r"\x1b\[[0-9]*m", "", str(error))
