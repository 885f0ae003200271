"""What running through `kfp.local` costs: the steps of the training pipeline, each in a process of its own,
against the same functions called one after the other in one process; and the time to compile every pipeline.

    python tests/benchmarks/pipeline_overhead.py [--impressions 30000] [--triton-venv .venv-triton]
"""

import argparse
import inspect
import re
import tempfile
import time
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict
from kfp import dsl, local

from watchrank.config import Config
from watchrank.deployment.local_server import LocalTriton
from watchrank.workspace import Workspace
from watchrank_components import candidates, data, monitoring, ranking, run, serving, text
from watchrank_pipelines.catalogue import PIPELINES, for_kubeflow
from watchrank_pipelines.cluster import placed
from watchrank_pipelines.local import _never_retry
from watchrank_pipelines.parameters import arguments
from watchrank_pipelines.training import training_pipeline

COMPONENTS = {
    member.name: member.python_func
    for module in (data, candidates, monitoring, ranking, run, serving, text)
    for member in vars(module).values()
    if hasattr(member, "python_func")
}
SMALL = ["simulation.users=400", "simulation.videos=300", "simulation.channels=60", "simulation.days=12"]
EASY = ["gates.force=true", "gates.baselines=[]", "training.epochs=1", "candidate_training.epochs=1"]


def call_directly(spec: dict, dag: dict, given: dict, folder: Path, seconds: dict) -> dict:
    """Call the functions of a graph in order; return the outputs of its tasks by (task, output)."""
    found: dict[tuple[str, str], Any] = {}
    waiting = dict(dag["tasks"])
    while waiting:
        name = next(
            each for each, task in waiting.items() if not {*task.get("dependentTasks", [])} & {*waiting}
        )
        task = waiting.pop(name)
        component = spec["components"][task["componentRef"]["name"]]
        values = {}
        for kind in ("parameters", "artifacts"):
            for each, source in task.get("inputs", {}).get(kind, {}).items():
                values[each] = resolve(source, given, found)
        if "dag" in component:
            inner = call_directly(spec, component["dag"], values, folder / name, seconds)
            outputs = component["dag"].get("outputs", {})
            for each, chosen in {**outputs.get("artifacts", {}), **outputs.get("parameters", {})}.items():
                selector = chosen.get("artifactSelectors", [chosen.get("valueFromParameter")])[0]
                key = selector.get("outputArtifactKey") or selector["outputParameterKey"]
                found[name, each] = inner[selector["producerSubtask"], key]
            continue
        function = COMPONENTS[task["componentRef"]["name"].removeprefix("comp-")]
        for each, made in component.get("outputDefinitions", {}).get("artifacts", {}).items():
            target = folder / name / each
            target.parent.mkdir(parents=True, exist_ok=True)
            kind = getattr(dsl, made["artifactType"]["schemaTitle"].removeprefix("system."))
            found[name, each] = values[each] = kind(name=each, uri=str(target), metadata={})
        started = time.perf_counter()
        answer = function(**values)
        seconds[task["taskInfo"]["name"], name] = time.perf_counter() - started
        parameters = component.get("outputDefinitions", {}).get("parameters", {})
        answers = answer if isinstance(answer, tuple) else (answer,)
        declared = inspect.signature(function).return_annotation
        names = getattr(declared, "_fields", tuple(parameters))
        found |= {(name, each): value for each, value in zip(names, answers, strict=False)}
    return found


def resolve(source: dict, given: dict, found: dict) -> Any:
    """Return what an input of a task is given."""
    if "runtimeValue" in source:
        value = source["runtimeValue"].get("constant", source["runtimeValue"].get("constantValue"))
        return int(value) if isinstance(value, float) and value.is_integer() else value
    for kind in ("componentInputParameter", "componentInputArtifact"):
        if kind in source:
            return given[source[kind]]
    for kind, key in (
        ("taskOutputParameter", "outputParameterKey"),
        ("taskOutputArtifact", "outputArtifactKey"),
    ):
        if kind in source:
            return found[source[kind]["producerTask"], source[kind][key]]
    raise ValueError(source)


def main() -> None:
    """Run both ways and print the times."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--impressions", type=int, default=30_000)
    parser.add_argument("--triton-venv", type=Path, default=Path(".venv-triton"))
    options = parser.parse_args()
    started = time.perf_counter()
    for name in PIPELINES:
        placed(for_kubeflow(name), Config().cluster)
    print(f"compile {len(PIPELINES)} pipelines: {time.perf_counter() - started:.2f} s")
    config = Config.load(None, [f"simulation.impressions={options.impressions}", *SMALL, *EASY])
    spec = MessageToDict(training_pipeline.pipeline_spec)
    seconds: dict[tuple[str, str], float] = {}
    with tempfile.TemporaryDirectory() as name:
        walls = {}
        for way in ("kfp.local", "direct"):
            place = Workspace(Path(name) / way)
            with LocalTriton(
                venv=options.triton_venv, repository=place.model_repository, state=place.triton
            ) as server:
                here = config.model_copy(update={"deployment": server.reached_by(config.deployment)})
                paths = {
                    "workspace": str(place.root),
                    "model_repository": str(place.model_repository),
                    "feature_repo": str(Path("feature_repo").absolute()),
                }
                given = arguments(training_pipeline, here, paths)
                defaults = spec["root"]["inputDefinitions"]["parameters"]
                given = {each: given.get(each, defaults[each].get("defaultValue")) for each in defaults}
                started = time.perf_counter()
                if way == "direct":
                    call_directly(spec, spec["root"]["dag"], given, place.runs, seconds)
                else:
                    _never_retry(training_pipeline)
                    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(place.runs))
                    training_pipeline(**given)
                walls[way] = time.perf_counter() - started
    steps = len(seconds)
    more = walls["kfp.local"] - walls["direct"]
    print(
        f"{steps} steps; kfp.local {walls['kfp.local']:.1f} s, direct {walls['direct']:.1f} s: "
        f"{walls['kfp.local'] / walls['direct']:.2f} times, {more / steps:.2f} s a step"
    )
    for (title, task), value in sorted(seconds.items(), key=lambda item: -item[1]):
        print(f"  {value:7.2f} s  {title} ({re.sub('-', '_', task)})")


if __name__ == "__main__":
    main()
