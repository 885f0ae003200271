"""Stages of `watchrank` on Spark: a SparkApplication of the Spark Operator whose driver runs the command."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import watchrank
from watchrank.config import SparkSettings
from watchrank.kubernetes_jobs import Kind, Status, run_job
from watchrank.kubernetes_pods import (
    RESTRICTED_CONTAINER,
    RESTRICTED_POD,
    require_shared,
    secret_variables,
    workspace_volume,
)

Stage = Literal["ingest", "features"]


def run_on_spark(
    stage: Stage,
    options: Mapping[str, Path | str],
    sections: Mapping[str, Mapping[str, Any]],
    settings: SparkSettings,
    run: str,
) -> None:
    """Run a stage with `engine.kind=spark` through the Spark Operator, and wait for its end.

    Args:
        stage: the subcommand of `watchrank`.
        options: of the subcommand; `workspace` and `data` are on the workspace's volume, or addresses.
        sections: settings of the stage, by section.
        settings: the driver, the executors and their image.
        run: what tells this run from others of the same stage; a second call with it takes up the first's.

    Raises:
        InputError: an image or a claim is not set, or a folder is not on the workspace's volume.
        JobError: the SparkApplication failed or took too long, or Kubernetes refused a call.
    """
    shared = [options[name] for name in ("workspace", "data") if name in options]
    require_shared(settings, "spark", *shared)
    given = {**sections, "engine": {**sections.get("engine", {}), "kind": "spark"}}
    words = [*_words(options, given), *settings.arguments]
    run_job(SPARK_APPLICATION, manifest(stage, words, settings, run), settings)


def manifest(stage: Stage, words: Sequence[str], settings: SparkSettings, run: str) -> dict[str, Any]:
    """Return the SparkApplication (`kubeflow_spark_api.models.SparkV1beta2SparkApplication`)."""
    volume, mount = workspace_volume(settings)
    pod = {
        "volumeMounts": [mount],
        "env": secret_variables(settings),
        "podSecurityContext": RESTRICTED_POD,
        "securityContext": RESTRICTED_CONTAINER,
    }
    key = hashlib.sha256(json.dumps([run, *words]).encode()).hexdigest()[:12]
    return {
        "apiVersion": f"{SPARK_APPLICATION.group}/{SPARK_APPLICATION.version}",
        "kind": SPARK_APPLICATION.name,
        "metadata": {"name": f"watchrank-{stage}-{key}"},
        "spec": {
            "type": "Python",
            "mode": "cluster",
            "sparkVersion": settings.spark_version,
            "image": settings.image,
            "mainApplicationFile": settings.application or _application(),
            "arguments": [stage, *words],
            "restartPolicy": {"type": "Never"},
            "volumes": [volume],
            "driver": {
                **pod,
                "serviceAccount": settings.service_account,
                "cores": settings.driver_cores,
                "memory": settings.driver_memory,
            },
            "executor": {
                **pod,
                "instances": settings.executors,
                "cores": settings.executor_cores,
                "memory": settings.executor_memory,
            },
        },
    }


def _words(options: Mapping[str, Path | str], sections: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return options and settings as words of the command line."""
    given = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    chosen = [
        f"--set={section}.{key}={json.dumps(value, ensure_ascii=False)}"  # YAML reads no surrogates
        for section, values in sections.items()
        for key, value in values.items()
    ]
    return [*given, *chosen]


def _application() -> str:
    return f"local://{Path(watchrank.__file__).parent / 'cli' / '__main__.py'}"


def _status(found: dict[str, Any]) -> Status:
    """Read the state of a SparkApplication."""
    told = found.get("status", {}).get("applicationState", {})
    state = told.get("state") or "NEW"
    if state == "COMPLETED":
        return Status("succeeded", state)
    if state == "FAILED":
        return Status("failed", told.get("errorMessage") or state)
    return Status("running", state)


SPARK_APPLICATION = Kind(
    name="SparkApplication",
    group="sparkoperator.k8s.io",
    version="v1beta2",
    plural="sparkapplications",
    pods="sparkoperator.k8s.io/app-name={name},spark-role=driver",
    container="spark-kubernetes-driver",
    status=_status,
)
