"""What the commands of `watchrank` share: the application, its options, its errors and tables."""

import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from watchrank.errors import WatchrankError

HELP = """The `watchrank` command: one subcommand a stage, all on one workspace folder.

Exit codes: 0 done; 1 unexpected; 2 bad input or usage; 3 the data failed validation; 4 the exported
graph differs from the model; 5 the server did not take up the release; 6 a model does not beat its gates.
"""

app = typer.Typer(
    help=HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"max_content_width": 110},
)
console = Console()

WorkspaceOption = Annotated[Path, typer.Option("--workspace", help="folder that the stages read and write")]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="YAML file of settings")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="one setting, as section.key=value; may be repeated")
]
RepoOption = Annotated[Path, typer.Option("--feature-repo", help="folder of the Feast definitions")]

ReleaseOption = Annotated[
    int | None, typer.Option("--release", help="number of the release; the last when not given")
]

_STORE = typer.Option("--store", help="release store: a folder or s3://bucket/prefix")
StoreOption = Annotated[str, _STORE]
MaybeStoreOption = Annotated[str | None, _STORE]

NumberingOption = Annotated[
    str | None,
    typer.Option("--store", help="release store that it will go to, whose numbers are not given again"),
]

RepositoryOption = Annotated[
    str | None,
    typer.Option(
        "--model-repository",
        help="what Triton serves from, a folder or s3://bucket/prefix; in the workspace when not given",
    ),
]

HERE = Path("work")
ENDPOINT = "recommend"
FEATURE_REPO = Path("feature_repo")
TRITON_VENV = Path(".venv-triton")


def metrics_table(results: dict[str, dict[str, dict[str, float]]]) -> Table:
    """Return the metrics of each model of an evaluation as a table, a column a model, ours first."""
    models = results["models"]
    order = sorted(models, key=lambda model: model not in ("ranker", "tower"))
    table = Table("metric", *order)
    for name in models[order[0]]:
        table.add_row(name, *(f"{models[model][name]:.4f}" for model in order))
    return table


def tasks_table(results: dict[str, dict[str, dict[str, float]]]) -> Table:
    """Return the metrics of each task of a ranker as a table, a row a task."""
    tasks = results["tasks"]
    names = list(dict.fromkeys(name for found in tasks.values() for name in found))
    table = Table("task", *names)
    for task, found in tasks.items():
        table.add_row(task, *(f"{found[name]:.4f}" if name in found else "" for name in names))
    return table


def newcomers(results: dict[str, Any]) -> str:
    """Return in words how users without a history were answered in an evaluation of candidates."""
    found = results["newcomers"]
    values = [f"{name} {metrics['recall@100']:.4f}" for name, metrics in found["models"].items()]
    return f"recall@100 of the {found['users']:,} users without a history: {', '.join(values) or 'none'}"


def run(command: typer.Typer) -> None:
    """Run a command line; a known error is one sentence on stderr and its exit code."""
    logging.basicConfig(
        format="%(message)s",
        handlers=[RichHandler(console=Console(stderr=True), show_path=False)],
    )
    logging.getLogger("watchrank").setLevel(logging.INFO)
    try:
        command()
    except WatchrankError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
