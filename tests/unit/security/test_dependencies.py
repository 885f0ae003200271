"""The locks agree, and what is installed to run comes under licences that let it be passed on."""

import re
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]
UNHASHED = {"torch"}
"""Each index of its builds (CPU, CUDA) has other files."""

COPYLEFT = re.compile(
    r"\bA?GPL|GNU (Affero )?General Public|SSPL|Business Source|Commons Clause", re.IGNORECASE
)


def locked(file):
    """Return the versions that a lock file names."""
    text = (ROOT / file).read_text(encoding="utf-8")
    pairs = re.findall(r"^([\w.-]+)==([\w.+!-]+)", text, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in pairs}


def runtime():
    """Return what `watchrank[all]` brings, by name, as it is installed here."""
    found, left = {}, [("watchrank", "all")]
    asked = set()
    while left:
        name, extra = left.pop()
        if (name, extra) in asked:
            continue
        asked.add((name, extra))
        found[name] = distribution(name)
        for text in found[name].requires or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                name_of = canonicalize_name(requirement.name)
                left += [(name_of, each) for each in ("", *requirement.extras)]
    return {name: found[name] for name in found if name != "watchrank"}


def licence(package: Distribution) -> str:
    """Return what a package says of its licence: an expression, classifiers, or the beginning of a text."""
    told = package.metadata
    classifiers = [each for each in told.get_all("Classifier") or [] if each.startswith("License ::")]
    text = (told.get("License") or "").strip().split("\n")[0]
    return told.get("License-Expression") or "; ".join([*classifiers, text]).strip("; ")


def test_the_lock_with_hashes_names_the_same_versions():
    plain, hashed = locked("requirements.lock"), locked("requirements-hashes.lock")
    assert {name: version for name, version in plain.items() if name not in UNHASHED} == hashed


def test_every_version_has_hashes():
    text = (ROOT / "requirements-hashes.lock").read_text(encoding="utf-8")
    entries = re.split(r"\n(?=[\w])", text.strip())
    assert len(entries) == len(locked("requirements-hashes.lock"))
    for entry in entries:
        assert re.fullmatch(r"[\w.-]+==[\w.+!-]+( \\\n    --hash=sha256:[0-9a-f]{64})+", entry), entry[:80]


def test_what_runs_is_locked():
    assert {*runtime()} <= {*locked("requirements.lock")}


@pytest.mark.parametrize("extra", ["all", "spark", "bench"])
def test_what_the_project_asks_for_is_locked(extra):
    own = [Requirement(text) for text in distribution("watchrank").requires or []]
    wanted = {
        canonicalize_name(each.name)
        for each in own
        if each.marker is None or each.marker.evaluate({"extra": extra})
    }
    assert wanted - {"watchrank"} <= {*locked("requirements.lock")}


def test_what_runs_is_under_no_copyleft_that_reaches_this_code():
    found = {name: licence(package) for name, package in runtime().items()}
    assert len(found) > 100
    assert {name: told for name, told in found.items() if not told} == {}
    assert {name: told for name, told in found.items() if COPYLEFT.search(told)} == {}


@pytest.mark.parametrize(
    ("told", "reaches"),
    [
        ("GPL-3.0-or-later", True),
        ("AGPL-3.0-only", True),
        ("License :: OSI Approved :: GNU General Public License v2 (GPLv2)", True),
        ("GNU Affero General Public License v3", True),
        ("LGPL-3.0-only", False),
        ("GNU Lesser General Public License v3 (LGPLv3)", False),
        ("Apache-2.0", False),
    ],
)
def test_which_licences_are_meant(told, reaches):
    assert bool(COPYLEFT.search(told)) == reaches
