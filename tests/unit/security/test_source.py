"""What the source must not do with data from elsewhere, read off its syntax trees."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FILES = sorted(
    file
    for folder in ("components", "pipelines", "feature_repo", "infra")
    for file in (ROOT / folder).rglob("*.py")
)
"""Feast's own code is left out: its registry keeps functions of on-demand views by dill. There are none here,
and only tasks write the registry."""

PICKLES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
CODE = {"eval", "exec", "compile", "__import__"}
SHELLS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}
UNSAFE = {
    "yaml.load",
    "yaml.load_all",
    "yaml.full_load",
    "yaml.full_load_all",
    "yaml.unsafe_load",
    "yaml.unsafe_load_all",
    "pandas.read_pickle",
    "pd.read_pickle",
    "torch.save",  # but for checkpoints, below
    "tempfile.mktemp",
}
LOADERS = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}
"""What they must be told, and where numpy's default is that already."""

ALLOWED = {("components/watchrank/training/fit.py", "torch.save")}
"""A checkpoint of tensors, which is read with weights_only=True."""


def faults(source, name=""):
    """Return what a source does that it must not, as `line: what`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            modules = []
        found += [(node.lineno, module) for module in modules if module.split(".")[0] in PICKLES]
        found += [(node.lineno, module) for module in modules if module in UNSAFE | SHELLS | {*LOADERS}]
        if isinstance(node, ast.Call):
            found += [(node.lineno, what) for what in _of_call(node)]
    return [f"{line}: {what}" for line, what in found if (name, what) not in ALLOWED]


def _of_call(call):
    called, given = ast.unparse(call.func), {word.arg: word.value for word in call.keywords}
    if called in CODE or called in UNSAFE | SHELLS:
        yield called
    if "shell" in given and not _is(given["shell"], False):
        yield "shell=True"
    if called in LOADERS:
        name, safe = LOADERS[called]
        if name in given and not _is(given[name], safe):
            yield called
        if name not in given and (safe is True or len(call.args) > 2 or None in given):
            yield called


def _is(node, value):
    return isinstance(node, ast.Constant) and node.value is value


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(ROOT)) for file in FILES])
def test_a_source_loads_no_code_from_data(file):
    assert not faults(file.read_text(encoding="utf-8"), str(file.relative_to(ROOT)))


def test_there_are_sources():
    assert len(FILES) > 150


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import os, cloudpickle as c",
        "from joblib import load",
        "from marshal import loads as read",
        "torch.load(x)",
        "torch.load(x, weights_only=False)",
        "torch.load(x, weights_only=safe)",
        "torch.load(x, **options)",
        "from torch import load",
        "torch.save(x, y)",
        "np.load(x, allow_pickle=True)",
        "np.load(x, None, True)",
        "np.load(x, **options)",
        "yaml.load(x, Loader=yaml.SafeLoader)",
        "from yaml import unsafe_load",
        "eval(x)",
        "exec(x)",
        "__import__(x)",
        "subprocess.run(x, shell=True)",
        "Popen(x, shell=some)",
        "os.system(x)",
        "pd.read_pickle(x)",
    ],
)
def test_each_of_them_is_found(source):
    assert faults(source)


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(x, weights_only=True)",
        "np.load(x, mmap_mode='r')",
        "np.load(x, allow_pickle=False)",
        "yaml.safe_load(x)",
        "model.eval()",
        "subprocess.run([x], shell=False)",
        "re.compile(x)",
    ],
)
def test_what_is_safe_is_let_through(source):
    assert not faults(source)


def test_no_feature_view_has_a_function_for_feast_to_pickle():
    definitions = (ROOT / "feature_repo" / "definitions.py").read_text(encoding="utf-8")
    assert "FeatureView(" in definitions
    functions = ("on_demand", "OnDemand", "stream", "Stream", "transformation")
    assert not any(word in definitions for word in functions)


def test_a_test_may_not_be_fooled_by_another_file():
    assert faults("torch.save(x, y)", "components/watchrank/other.py")
