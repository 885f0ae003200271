"""The `watchrank` command line."""

from watchrank.cli import building, releasing, serving
from watchrank.cli.app import app, run

__all__ = ["app", "building", "main", "releasing", "serving"]


def main() -> None:
    """Run `watchrank`."""
    run(app)
