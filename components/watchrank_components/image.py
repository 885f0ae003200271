"""The image that all components run in."""

from collections.abc import Callable
from typing import Any

from kfp import dsl

IMAGE = "watchrank-python:0.1.0"


def component(function: Callable[..., Any]) -> Any:
    """Make a function a component that runs in the project's image."""
    return dsl.component(function, base_image=IMAGE, install_kfp_package=False)
