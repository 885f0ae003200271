"""Every pipeline there is, by the name that the command line knows it by."""

from kfp.dsl.base_component import BaseComponent

from watchrank.errors import InputError
from watchrank_pipelines.training import training_pipeline

PIPELINES: dict[str, BaseComponent] = {"training": training_pipeline}


def find(name: str) -> BaseComponent:
    """Return the pipeline of that name.

    Raises:
        InputError: there is none.
    """
    if name not in PIPELINES:
        raise InputError(f"There is no pipeline {name!r}. There is {', '.join(PIPELINES)}.")
    return PIPELINES[name]
