"""The `watchrank-pipelines` command: run pipelines on this machine, compile them for Kubeflow."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown

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
from watchrank.storage import atomic_path

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)
console = Console()


@app.callback()
def _commands() -> None:
    """Run pipelines on this machine, compile them for Kubeflow."""


@app.command()
def run(
    data: Annotated[Path | None, typer.Option(help="folder of the log; simulated when not given")] = None,
    source: Annotated[str, typer.Option(help="format of the log: own or kuairand")] = "own",
    workspace: WorkspaceOption = Path("work"),
    feature_repo: RepoOption = Path("feature_repo"),
    triton_venv: Annotated[Path, typer.Option(help="environment of Triton")] = Path(".venv-triton"),
    config: ConfigOption = None,
    override: SetOption = None,
) -> None:
    """Run the training pipeline here: raw logs to the answers of a real Triton server."""
    from watchrank_pipelines.local import run_training

    reports = run_training(
        Config.load(config, override),
        workspace,
        data=data,
        source=source,
        feature_repo=feature_repo,
        triton_venv=triton_venv,
    )
    console.print(Markdown((reports / "recommendations.md").read_text()))
    results = json.loads((reports / "metrics.json").read_text())
    console.print(metrics_table(results))
    candidates = json.loads((reports / "candidate_metrics.json").read_text())
    console.print(metrics_table(candidates))
    console.print(newcomers(candidates), soft_wrap=True)
    if "truth" in results:
        console.print(f"Predicted / true expected watch time: {results['truth']['sum_ratio']:.4f}")
    console.print(f"Report: {reports / 'ranking.html'}")


@app.command(name="compile")
def compile_pipelines(
    output: Annotated[Path, typer.Option(help="folder of the YAML files")] = Path("build/pipelines"),
) -> None:
    """Write every pipeline's YAML for the Kubeflow UI."""
    from kfp import compiler

    from watchrank_pipelines.training import training_pipeline

    for pipeline in (training_pipeline,):
        target = output / f"{pipeline.name}.yaml"
        with atomic_path(target) as fresh:
            compiler.Compiler().compile(pipeline, str(fresh))
        console.print(f"{target}")


def main() -> None:
    """Run `watchrank-pipelines`."""
    run_command(app)
