"""The parameters of a run: the sections of the configuration, and what is given by name."""

from collections.abc import Mapping
from typing import Any

from kfp.dsl.base_component import BaseComponent

from watchrank.config import Config, read_yaml
from watchrank.errors import InputError

_TYPES = {"Integer": (int,), "Float": (int, float), "Boolean": (bool,), "Dict": (dict,), "List": (list,)}


def sections(config: Config) -> dict[str, Any]:
    """Return the sections of the configuration as parameters; the kind of ranker is one of its own."""
    values = config.model_dump(mode="json", exclude_none=True)
    return values | {"model": values["ranking"].pop("model")}


def arguments(pipeline: BaseComponent, config: Config, given: Mapping[str, str]) -> dict[str, Any]:
    """Return what a run of the pipeline is given.

    Args:
        pipeline: a compiled pipeline function.
        config: all settings; the pipeline takes the sections that it has parameters for.
        given: its other parameters, as text.

    Raises:
        InputError: the pipeline has no such parameter, needs another, or the text is not of its type.
    """
    inputs = pipeline.component_spec.inputs or {}
    settings = {name: value for name, value in sections(config).items() if name in inputs}
    plain = [name for name in inputs if name not in settings]
    if unknown := sorted(set(given) - set(plain)):
        remedy = "Set it by --set" if unknown[0] in settings else f"It has {', '.join(plain)}"
        raise InputError(f"{pipeline.name} has no plain parameter {unknown[0]}. {remedy}.")
    if missing := [name for name in plain if name not in given and not inputs[name].optional]:
        raise InputError(f"{pipeline.name} needs {missing[0]}. Give it by --param {missing[0]}=value.")
    return {name: _typed(name, text, inputs[name].type) for name, text in given.items()} | settings


def _typed(name: str, text: str, kind: str) -> Any:
    """Read the text of a parameter as its KFP type."""
    if kind == "String":
        return text
    try:
        value = read_yaml(text)
    except ValueError:
        value = None
    if type(value) not in _TYPES[kind]:
        raise InputError(f"The parameter {name} is {text!r}, which is no {kind}. Give it as YAML reads it.")
    return value
