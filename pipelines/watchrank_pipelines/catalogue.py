"""Every pipeline there is, by the name that the command line knows it by."""

from kfp.dsl.graph_component import GraphComponent

from watchrank.errors import InputError
from watchrank_pipelines.definition import guarded
from watchrank_pipelines.drift import drift_pipeline
from watchrank_pipelines.feature import feature_pipeline
from watchrank_pipelines.retraining import retraining_pipeline
from watchrank_pipelines.rollback import rollback_pipeline
from watchrank_pipelines.training import training_pipeline

PIPELINES = {
    "feature": feature_pipeline,
    "training": training_pipeline,
    "retraining": retraining_pipeline,
    "rollback": rollback_pipeline,
    "drift": drift_pipeline,
}
"""As they are defined, and as they run on this machine."""

_HOLD_THE_WORKSPACE = {"feature", "training", "retraining"}


def find(name: str) -> GraphComponent:
    """Return the pipeline of that name.

    Raises:
        InputError: there is none.
    """
    if name not in PIPELINES:
        raise InputError(f"There is no pipeline {name!r}. There is {', '.join(PIPELINES)}.")
    return PIPELINES[name]


def for_kubeflow(name: str) -> GraphComponent:
    """Return the pipeline of that name as Kubeflow runs it: guarded.

    Raises:
        InputError: there is none.
    """
    return guarded(find(name), holds_workspace=name in _HOLD_THE_WORKSPACE)
