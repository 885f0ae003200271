"""Components that stand around a run: the first takes the workspace, the last gives it back and reports."""

from kfp.dsl import PipelineTaskFinalStatus

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
def finish(status: PipelineTaskFinalStatus, workspace: str, run: str, webhook: str):
    """Give the workspace back, and tell the webhook when the run failed.

    Args:
        status: how the run ended.
        workspace: of `begin`.
        run: id of this run.
        webhook: address that takes JSON with a text, such as a chat's; empty tells nobody.
    """
    from pathlib import Path

    from watchrank.lease import give_back
    from watchrank.webhook import post

    give_back(Path(workspace), run)
    print(f"The run {run} ended: {status.state}.")
    if webhook and status.state not in ("SUCCEEDED", "COMPLETE"):
        name, reason = status.pipeline_job_resource_name, status.error_message or "see its log in Kubeflow"
        text = f"{name} {status.state.lower()}: {reason}"
        post(webhook, text, run=run, name=name, state=status.state, reason=reason)
