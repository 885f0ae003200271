"""The rollback pipeline: an earlier release answers again."""

from typing import NamedTuple

from kfp.dsl import Markdown

from watchrank_components import serving as serving_components
from watchrank_pipelines.definition import Settings, online, pipeline


class Reports(NamedTuple):
    """What a run leaves to look at."""

    summary: Markdown


@pipeline("watchrank-rollback", "watchrank: rollback", "deployment")
def rollback_pipeline(
    workspace: str,
    model_repository: str = "model_repository",
    release_store: str = "",
    release: int = 0,
    *,
    settings: Settings,
) -> Reports:
    """Let an earlier release answer again: tested beside what serves, then switched to.

    Args:
        workspace: Folder that keeps the releases.
        model_repository: What Triton serves from, a folder or s3://.
        release_store: Where Tritons follow releases, a folder or s3://. Empty: Triton is told directly.
        release: Number of the release. 0: the one before the one that serves.
        settings: Its sections of the configuration.
    """
    done = online(
        serving_components.roll_back(
            workspace=workspace,
            model_repository=model_repository,
            release_store=release_store,
            release=release,
            deployment=settings["deployment"],
        ),
        "Rollback",
    )
    return Reports(done.outputs["summary"])
