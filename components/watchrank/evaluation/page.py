"""Self-contained HTML pages with their plots, for a browser and the Kubeflow UI alike."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from watchrank.storage import atomic_path

BLUE, ORANGE, GREEN, GREY = "#2f6fde", "#e07b39", "#2a9d6f", "#8a949e"


def write_page(target: Path, template: str, **values: Any) -> None:
    """Fill one of the templates beside this module and write the page atomically."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("watchrank.evaluation", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template(template).render(**values)
    with atomic_path(target) as fresh:
        fresh.write_text(page, encoding="utf-8")


def svg(title: str, draw: Callable[[Axes], None], *, width: float = 4.6) -> str:
    """Draw one plot as an inline SVG of `width` inches."""
    with mpl.rc_context({"svg.hashsalt": "watchrank", "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(width, 3.6), layout="constrained")
        axes = figure.subplots()
        axes.set_title(title)
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
