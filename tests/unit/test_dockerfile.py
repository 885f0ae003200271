"""The Dockerfile, as far as it can be held against the checkout without Docker."""

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from watchrank_components.image import IMAGE

REPOSITORY = Path(__file__).resolve().parents[2]
FILE = REPOSITORY / "infra" / "docker" / "Dockerfile"
TARGETS = ["cpu", "gpu", "spark", "triton"]


@pytest.fixture(scope="module")
def stages():
    """Each stage by its name: its base, and its instructions as (keyword, words)."""
    found = {}
    for line in re.sub(r"\\\n", " ", FILE.read_text(encoding="utf-8")).splitlines():
        keyword, _, words = line.partition(" ")
        if keyword == "FROM":
            base, _, name = words.partition(" AS ")
            found[name] = (base, [])
        elif keyword and keyword != "#":
            found[name][1].append((keyword, words))
    return found


def chain(stages, target):
    """Return all instructions that make up an image, first to last."""
    base, instructions = stages[target]
    return [*(chain(stages, base) if base in stages else []), *instructions]


def words_of(instructions, keyword):
    return [words for each, words in instructions if each == keyword]


def test_the_linter_finds_nothing():
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = [
        shutil.which("hadolint", path=places),
        "--no-color",
        "--ignore",
        "DL3008",
        FILE,
    ]  # versions of apt
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_targets_are_those_of_the_issue_and_named_on_top(stages):
    built = [name for name in stages if not any(name == base for base, _ in stages.values())]
    assert [name for name in built if not name.startswith("build")] == TARGETS
    heading = FILE.read_text(encoding="utf-8").split("\n\n")[0]
    assert re.findall(r"^# (\w+): ", heading, re.MULTILINE) == TARGETS
    assert f"--tag {IMAGE} " in heading


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_runs_as_a_numbered_user(stages, target):
    instructions = chain(stages, target)
    (*_, last) = (place for place, (keyword, _) in enumerate(instructions) if keyword == "USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", instructions[last][1])
    assert {keyword for keyword, _ in instructions[last + 1 :]} <= {"COPY", "ENTRYPOINT"}


@pytest.mark.parametrize("target", TARGETS)
def test_no_image_holds_a_compiler_or_pips_cache(stages, target):
    runs = " ".join(words_of(chain(stages, target), "RUN"))
    assert not re.search(r"build-essential|\bgcc\b|pip install|-dev\b", runs)


def test_what_is_copied_is_there_and_not_ignored(stages):
    patterns = FILE.with_name("Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    earlier = []
    for name, (_, instructions) in stages.items():
        for words in words_of(instructions, "COPY"):
            *sources, _ = words.split()
            if sources[0].startswith("--from="):
                source = sources[0].removeprefix("--from=")
                assert source in earlier or re.fullmatch(r"[\w./-]+:(?!latest$)[\w.-]+", source), words
                continue
            for source in sources:
                assert (REPOSITORY / source).exists(), words
                assert let_in(source, patterns), words
        earlier.append(name)


def let_in(path, patterns):
    """Return whether the build's context has a path: the last pattern that fits it, or a folder above it."""
    above = [path, *(str(parent) for parent in Path(path).parents)]
    kept = True
    for pattern in patterns:
        if any(fnmatch.fnmatch(each, pattern.lstrip("!")) for each in above):
            kept = pattern.startswith("!")
    return kept


def test_requirements_are_locked_and_extras_exist(stages):
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    installs = [
        words for _, each in stages.values() for words in words_of(each, "RUN") if "pip install" in words
    ]
    assert len(installs) == 3
    for words in installs:
        assert "--constraint requirements.lock" in words
        (extras,) = re.findall(r"'\.\[([\w,]+)\]'", words)
        assert set(extras.split(",")) <= set(project["optional-dependencies"])


def test_build_and_image_have_one_python_that_the_project_allows(stages):
    bases = {stages[name][0] for name in ("build", "runtime")}
    (version,) = {re.fullmatch(r"python:(\d+\.\d+)\.\d+-slim-bookworm", base)[1] for base in bases}
    (home,) = [words for words in words_of(stages["spark"][1], "ENV") if "SPARK_HOME" in words]
    assert f"/python{version}/" in home
    assert version == (REPOSITORY / "Makefile").read_text().split("PYTHON ?= python")[1].split()[0]
