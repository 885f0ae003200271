"""What the Python environment of each image weighs: made afresh as the Dockerfile makes it, then measured.

    python tests/benchmarks/image_sizes.py cpu spark

TORCH_INDEX is the Dockerfile's: the index of torch's builds for the CPU. `gpu` wants an index that has torch
with CUDA, no TORCH_INDEX, and the disk for it.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

REPOSITORY = Path(__file__).resolve().parents[2]
DOCKERFILE = REPOSITORY / "infra" / "docker" / "Dockerfile"
LARGEST = 8


def requirements() -> dict[str, str]:
    """Return what each target of the Dockerfile installs of the project, such as `.[all]`."""
    stages = re.split(r"^FROM .* AS build-", DOCKERFILE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {re.match(r"\w+", stage)[0]: re.search(r"'(\.\[[\w,]+\])'", stage)[1] for stage in stages}


def install(folder: Path, requirement: str) -> Path:
    """Install into a new environment; return its packages' folder."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    index = os.environ.get("TORCH_INDEX")
    pip = [folder / "bin" / "python", "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    options = ["--constraint", "requirements.lock", *(["--extra-index-url", index] if index else [])]
    subprocess.run([*pip, *options, requirement], cwd=REPOSITORY, check=True)
    (packages,) = folder.glob("lib/python3.*/site-packages")
    return packages


def sizes(folder: Path) -> Counter[str]:
    """Return the bytes on disk below each entry of a folder."""
    found: Counter[str] = Counter()
    for path in folder.rglob("*"):
        found[path.relative_to(folder).parts[0]] += path.lstat().st_blocks * 512
    return found


def main() -> None:
    """Print a row for each target."""
    wanted = requirements()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", choices=sorted(wanted), help="all but gpu when none is named")
    table = Table("image", "requirement", "packages", "MB", "largest, MB")
    for target in parser.parse_args().targets or sorted(wanted.keys() - {"gpu"}):
        with tempfile.TemporaryDirectory() as folder:
            packages = install(Path(folder) / "venv", wanted[target])
            found = sizes(packages)
            count = len(list(packages.glob("*.dist-info")))
        largest = ", ".join(f"{name} {size / 1e6:.0f}" for name, size in found.most_common(LARGEST))
        table.add_row(target, escape(wanted[target]), str(count), f"{found.total() / 1e6:.0f}", largest)
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
