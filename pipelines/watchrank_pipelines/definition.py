"""What a pipeline is here: a function of its own parameters and of whole sections of the configuration."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from kfp import dsl
from kfp.dsl import PipelineTask
from kfp.dsl.graph_component import GraphComponent

from watchrank.config import Config
from watchrank_components.run import begin, finish
from watchrank_pipelines.parameters import sections

Settings = Mapping[str, Any]
"""The parameter of each section that a pipeline takes, by the section's name."""

_DEFAULTS = sections(Config())
_MODEL = "The ranker: ranking (watch time alone), share_bottom, omoe or mmoe (several tasks)."
_GUARD = {
    "webhook": (
        "",
        "Address that is told when a run fails. Empty: that of the variable WATCHRANK_WEBHOOK, if any.",
    ),
    "wait_minutes": (60, "How long to wait for another run in the workspace. 0 refuses at once."),
    "lease_hours": (24, "When another run may take the workspace, should this one never end."),
}


def pipeline(name: str, display_name: str, *takes: str) -> Callable[[Callable[..., Any]], GraphComponent]:
    """Make a function a pipeline, or a group of steps within one.

    Args:
        name: of the pipeline.
        display_name: what the UI shows.
        takes: the sections of the configuration that become its parameters, with their defaults. The function
            is given them as `settings`.
    """

    def defined(function: Callable[..., Any]) -> GraphComponent:
        own = [each for each in inspect.signature(function).parameters.values() if each.name != "settings"]
        parameters = [*own, *(_parameter(section, _DEFAULTS[section]) for section in takes)]

        def build(**values: Any) -> Any:
            settings = {section: values.pop(section) for section in takes}
            return function(**values, settings=settings) if takes else function(**values)

        described = {section: _description(section) for section in takes}
        outputs = inspect.signature(function).return_annotation
        return _component(build, name, display_name, inspect.getdoc(function), parameters, described, outputs)

    return defined


def guarded(plain: GraphComponent, *, holds_workspace: bool) -> GraphComponent:
    """Return the pipeline as Kubeflow runs it: alone in its workspace, and a failed run is reported.

    It has no outputs: KFP takes none out of an exit handler. The artifacts of its steps are all there.
    """
    own = list(inspect.signature(plain.pipeline_func).parameters.values())
    names = [*_GUARD] if holds_workspace else ["webhook"]
    parameters = [*own, *(_parameter(name, _GUARD[name][0]) for name in names)]
    run = dsl.PIPELINE_JOB_ID_PLACEHOLDER

    def build(**values: Any) -> None:
        guard = {name: values.pop(name) for name in names}
        end = effect(finish(workspace=values["workspace"], run=run, webhook=guard.pop("webhook")), "End")
        with dsl.ExitHandler(end, name="Run"):
            if holds_workspace:
                begun = effect(begin(workspace=values["workspace"], run=run, **guard), "Begin")
                values["workspace"] = begun.output
            plain.pipeline_func(**values)

    info, described = plain.pipeline_spec.pipeline_info, {name: _GUARD[name][1] for name in names}
    return _component(build, info.name, info.display_name, plain.pipeline_func.__doc__, parameters, described)


def part(settings: Settings, group: GraphComponent) -> dict[str, Any]:
    """Return the sections that a group takes."""
    return {name: value for name, value in settings.items() if name in group.component_spec.inputs}


def effect(task: PipelineTask, display_name: str) -> PipelineTask:
    """Name a step that changes something outside the run: it is never taken from the cache."""
    return task.set_display_name(display_name).set_caching_options(False)


def online(task: PipelineTask, display_name: str) -> PipelineTask:
    """Name a step that talks to another server: it is never taken from the cache, and tried again."""
    return effect(task, display_name).set_retry(
        3, backoff_duration="30s", backoff_factor=2, backoff_max_duration="10m"
    )


def _component(
    build: Callable[..., Any],
    name: str,
    display_name: str,
    doc: str | None,
    parameters: list[inspect.Parameter],
    described: Mapping[str, str],
    outputs: Any = inspect.Signature.empty,
) -> GraphComponent:
    """Let KFP make a pipeline of a function whose signature and docstring are put together here."""

    def called(*arguments: Any, **named: Any) -> Any:
        return build(**dict(zip((each.name for each in parameters), arguments, strict=False)), **named)

    lines = [f"    {each}: {text}" for each, text in described.items()]
    head, mark, own = (doc or "").partition("Args:")
    called.__name__ = name.replace("-", "_")
    called.__doc__ = "\n".join([head.rstrip(), "", mark or "Args:", *filter(None, [own.strip("\n")]), *lines])
    called.__signature__ = inspect.Signature(parameters, return_annotation=outputs)  # type: ignore[attr-defined]
    return dsl.pipeline(called, name=name, display_name=display_name)


def _parameter(name: str, default: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=type(default)
    )


def _description(section: str) -> str:
    """Return what a section of the configuration is about, from its class."""
    if section == "model":
        return _MODEL
    return (inspect.getdoc(Config.model_fields[section].annotation) or "").split("\n")[0]
