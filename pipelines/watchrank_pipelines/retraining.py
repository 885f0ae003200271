"""The retraining pipeline: what a schedule runs, day after day."""

from watchrank_pipelines.definition import Settings, pipeline
from watchrank_pipelines.training import SECTIONS, Reports, train_and_release


@pipeline(
    "watchrank-retraining",
    "watchrank: retraining",
    *(section for section in SECTIONS if section != "simulation"),
)
def retraining_pipeline(
    workspace: str,
    data: str,
    source: str = "own",
    until: str = "",
    warm_start: bool = True,
    step_back: bool = False,
    feature_repo: str = "feature_repo",
    model_repository: str = "model_repository",
    release_store: str = "",
    *,
    settings: Settings,
) -> Reports:
    """The log's newest days to a release that Triton serves, if it passes its gate against what serves.

    Training starts from the weights of what serves. Repeated for a day, it makes the same release again, that
    is none.

    Args:
        workspace: Folder that keeps what outlives a run: events, features, releases.
        data: Folder of the log, or s3://.
        source: Format of the log: own, kuairand or movielens.
        until: Last day of the window, as 2026-01-31. Empty: the log's last.
        warm_start: Whether training starts from the weights of what serves.
        step_back: Whether the window may end before that of what serves, which is refused else.
        feature_repo: Folder of the Feast definitions.
        model_repository: What Triton serves from, a folder or s3://.
        release_store: Where Tritons follow releases, a folder or s3://. Empty: Triton is told directly.
        settings: Its sections of the configuration.
    """
    return train_and_release(
        data,
        source,
        {"workspace": workspace, "feature_repo": feature_repo},
        {"model_repository": model_repository, "release_store": release_store},
        settings,
        until=until,
        warm_start=warm_start,
        step_back=step_back,
    )
