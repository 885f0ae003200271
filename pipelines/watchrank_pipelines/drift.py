"""The drift pipeline: are features of now still those that the ranker was trained on, online as offline?"""

from typing import NamedTuple

from kfp.dsl import HTML

from watchrank_components import data as data_components
from watchrank_components import monitoring as monitoring_components
from watchrank_pipelines.definition import Settings, effect, online, pipeline
from watchrank_pipelines.groups import SKEW_SAMPLE


class Reports(NamedTuple):
    """What a run leaves to look at."""

    drift: HTML
    skew: HTML


@pipeline("watchrank-drift", "watchrank: drift", "engine", "split", "drift")
def drift_pipeline(
    workspace: str,
    request_log: str = "",
    feature_repo: str = "feature_repo",
    *,
    settings: Settings,
) -> Reports:
    """Hold features of now against those of the training window, and the online store against the offline.

    Args:
        workspace: Folder that keeps events and features, as the feature pipeline left them.
        request_log: Folder of what was served, with its features. Empty: the last days of the events.
        feature_repo: Folder of the Feast definitions.
        settings: Its sections of the configuration.
    """
    found = effect(data_components.open_workspace(workspace=workspace), "Workspace")
    store = found.outputs["store"]
    dataset = data_components.build_dataset(
        events=found.outputs["events"],
        store=store,
        workspace=workspace,
        feature_repo=feature_repo,
        split=settings["split"],
        engine=settings["engine"],
    ).set_display_name("Dataset")
    drifted = effect(
        monitoring_components.report_drift(
            dataset=dataset.outputs["dataset"],
            request_log=request_log,
            events=found.outputs["Output"],
            drift=settings["drift"],
        ),
        "Drift report",
    )
    skewed = online(
        monitoring_components.report_skew(
            store=store, workspace=workspace, feature_repo=feature_repo, sample=SKEW_SAMPLE
        ),
        "Skew report",
    )
    return Reports(drifted.outputs["report"], skewed.outputs["report"])
