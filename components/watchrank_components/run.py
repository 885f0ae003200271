"""Components that stand around a run: the first takes the workspace, the last gives it back and reports."""

from typing import NamedTuple

from kfp.dsl import Dataset, Input, PipelineTaskFinalStatus

from watchrank_components.image import component


@component
def begin(workspace: str, run: str, lease_hours: int, wait_minutes: int) -> str:
    """Take the workspace for this run; wait while another run has it.

    Args:
        workspace: folder that keeps what outlives a run.
        run: id of this run.
        lease_hours: after which another run may take it, should this one never end.
        wait_minutes: how long to wait for another run; 0 refuses at once.

    Returns:
        The workspace.
    """
    from pathlib import Path

    from watchrank.lease import take

    take(Path(workspace), run, hours=lease_hours, wait_minutes=wait_minutes)
    return workspace


@component
def plan(
    events: Input[Dataset],
    workspace: str,
    model_repository: str,
    release_store: str,
    until: str,
    warm_start: bool,
    step_back: bool,
    split: dict,
) -> NamedTuple("Plan", [("split", dict), ("start", str)]):
    """Settle the window of this run and the release that it starts from.

    Args:
        events: of `ingest`.
        workspace: keeps the releases.
        model_repository: what Triton serves from.
        release_store: where Tritons follow releases; empty where Triton is told directly.
        until: last day of the window; empty for the log's last.
        warm_start: whether to start from what serves.
        step_back: whether the window may end before that of what serves.
        split: settings: which days train, validate and test.

    Returns:
        The settings of the window, with its last day, and the folder of the release to start from, or empty.
    """
    from pathlib import Path

    from watchrank.config import SplitSettings, parse
    from watchrank.deployment.rollout import serving_release
    from watchrank.retraining import plan
    from watchrank.workspace import Workspace

    champion = serving_release(Workspace(Path(workspace)).releases, model_repository, release_store)
    settings, folder = parse(SplitSettings, split, "split"), Path(events.metadata["folder"])
    found = plan(folder, until, settings, champion, warm_start=warm_start, step_back=step_back)
    print(f"The window ends on {found.split.until}; training starts from {found.start or 'nothing'}.")
    return (found.split.model_dump(mode="json", exclude_none=True), str(found.start or ""))


@component
def finish(status: PipelineTaskFinalStatus, workspace: str, run: str, webhook: str):
    """Give the workspace back, and tell the webhook when the run failed.

    Args:
        status: how the run ended.
        workspace: of `begin`.
        run: id of this run.
        webhook: address that takes JSON with a text, such as a chat's. Empty: the one in the environment as
            WATCHRANK_WEBHOOK, or else nobody is told.
    """
    from pathlib import Path

    from watchrank.lease import give_back
    from watchrank.webhook import address, post

    give_back(Path(workspace), run)
    print(f"The run {run} ended: {status.state}.")
    told = address(webhook)
    if told and status.state not in ("SUCCEEDED", "COMPLETE"):
        name, reason = status.pipeline_job_resource_name, status.error_message or "see its log in Kubeflow"
        text = f"{name} {status.state.lower()}: {reason}"
        post(told, text, run=run, name=name, state=status.state, reason=reason)
