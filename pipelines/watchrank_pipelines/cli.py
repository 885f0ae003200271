"""The `watchrank-pipelines` command: run pipelines on this machine, or on Kubeflow by hand and by schedule.

Exit codes: 0 done; 1 unexpected; 2 bad input or usage; 7 the Kubeflow server refused or does not answer.
"""

import json
import logging
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

from watchrank.cli.app import (
    ConfigOption,
    RepoOption,
    SetOption,
    WorkspaceOption,
    metrics_table,
    newcomers,
)
from watchrank.cli.app import run as run_command
from watchrank.config import Config
from watchrank.errors import InputError
from watchrank.storage import atomic_path

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)
console = Console()

PipelineOption = Annotated[str, typer.Option(help="which pipeline, such as training")]
ParameterOption = Annotated[
    list[str] | None,
    typer.Option("--param", help="parameter of the pipeline that is no setting, as name=value"),
]


class Action(StrEnum):
    """What to do with schedules."""

    SET = "set"
    LIST = "list"
    PAUSE = "pause"
    RESUME = "resume"
    DELETE = "delete"


@app.command()
def run(
    pipeline: PipelineOption = "training",
    data: Annotated[str, typer.Option(help="folder of the log, or s3://; simulated when not given")] = "",
    source: Annotated[str, typer.Option(help="format of the log: own, kuairand or movielens")] = "own",
    parameter: ParameterOption = None,
    workspace: WorkspaceOption = Path("work"),
    feature_repo: RepoOption = Path("feature_repo"),
    triton_venv: Annotated[Path, typer.Option(help="environment of Triton")] = Path(".venv-triton"),
    config: ConfigOption = None,
    override: SetOption = None,
) -> None:
    """Run a pipeline here, with a real Triton server; training goes from raw logs to its answers."""
    from watchrank_pipelines.catalogue import find
    from watchrank_pipelines.local import run_here

    wanted = find(pipeline)
    given = {"data": data, "source": source, "feature_repo": str(feature_repo)}
    taken = {name: value for name, value in given.items() if name in wanted.component_spec.inputs}
    reports = run_here(
        wanted, Config.load(config, override), workspace, taken | _pairs(parameter), triton_venv
    )
    for page in sorted(reports.glob("*.md")):
        console.print(Markdown(page.read_text()))
    if (reports / "metrics.json").exists():
        _print_metrics(reports)
    console.print(f"Reports: {reports}")


def _print_metrics(reports: Path) -> None:
    """Print what the models of a run achieve."""
    results = json.loads((reports / "metrics.json").read_text())
    console.print(metrics_table(results))
    candidates = json.loads((reports / "candidate_metrics.json").read_text())
    console.print(metrics_table(candidates))
    console.print(newcomers(candidates), soft_wrap=True)
    if "truth" in results:
        console.print(f"Predicted / true expected watch time: {results['truth']['sum_ratio']:.4f}")


@app.command(name="compile")
def compile_pipelines(
    output: Annotated[Path, typer.Option(help="folder of the YAML files")] = Path("build/pipelines"),
    config: ConfigOption = None,
    override: SetOption = None,
) -> None:
    """Write every pipeline's YAML for the Kubeflow UI, for the cluster that the settings describe."""
    from watchrank_pipelines.catalogue import PIPELINES, for_kubeflow
    from watchrank_pipelines.cluster import placed

    settings = Config.load(config, override).cluster
    for name in PIPELINES:
        pipeline = for_kubeflow(name)
        target = output / f"{pipeline.name}.yaml"
        with atomic_path(target) as fresh:
            fresh.write_text(yaml.safe_dump_all(placed(pipeline, settings)))
        console.print(f"{target}")


@app.command()
def submit(
    pipeline: PipelineOption = "training",
    parameter: ParameterOption = None,
    config: ConfigOption = None,
    override: SetOption = None,
) -> None:
    """Upload a pipeline to Kubeflow under the code's version and start a run of it."""
    from watchrank_pipelines.catalogue import for_kubeflow
    from watchrank_pipelines.kubeflow import connect
    from watchrank_pipelines.parameters import arguments

    wanted, settings = for_kubeflow(pipeline), Config.load(config, override)
    given = arguments(wanted, settings, _pairs(parameter))
    with connect(settings.kubeflow, settings.cluster) as kubeflow:
        run = kubeflow.submit(wanted, given)
    console.print(f"Started {run.display_name}", soft_wrap=True)


@app.command()
def schedule(
    action: Annotated[Action, typer.Argument()] = Action.SET,
    pipeline: PipelineOption = "training",
    cron: Annotated[
        str | None, typer.Option(help="minute, hour, day, month and weekday, such as '0 3 * * *'")
    ] = None,
    parameter: ParameterOption = None,
    config: ConfigOption = None,
    override: SetOption = None,
) -> None:
    """Make or replace the schedule of a pipeline on Kubeflow; list, pause, resume or delete schedules."""
    from watchrank_pipelines.catalogue import for_kubeflow
    from watchrank_pipelines.kubeflow import connect
    from watchrank_pipelines.parameters import arguments

    if (action is Action.SET) != (cron is not None):
        raise InputError("--cron makes a schedule, and only that: give it to `schedule` without an action.")
    wanted, settings = for_kubeflow(pipeline), Config.load(config, override)
    given = arguments(wanted, settings, _pairs(parameter)) if cron else {}
    with connect(settings.kubeflow, settings.cluster) as kubeflow:
        if cron:
            kubeflow.schedule(wanted, cron, given)
        elif action is Action.PAUSE:
            kubeflow.pause(wanted.name)
        elif action is Action.RESUME:
            kubeflow.resume(wanted.name)
        elif action is Action.DELETE:
            kubeflow.unschedule(wanted.name)
        table = Table("schedule", "cron", "mode", "version")
        for found in kubeflow.schedules():
            times = found.trigger.cron_schedule.cron if found.trigger.cron_schedule else "no cron"
            table.add_row(found.display_name, times, found.mode, found.description)
    console.print(table)


def _pairs(parameters: list[str] | None) -> dict[str, str]:
    """Read name=value pairs."""
    pairs = {}
    for text in parameters or []:
        name, equals, value = text.partition("=")
        if not (equals and name):
            raise InputError(f"Cannot read the parameter {text!r}. Write name=value.")
        pairs[name] = value
    return pairs


def main() -> None:
    """Run `watchrank-pipelines`."""
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it warns of every retry
    run_command(app)
