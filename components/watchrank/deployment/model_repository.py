"""A Triton model repository, in a folder or on S3, that holds several releases side by side.

    ranking_000007/config.pbtxt    a model of release 7, under a name of its own
    ranking_000007/1/model.onnx
    ranking/config.pbtxt           an endpoint: an ensemble that points to one release

A release's models stand alone, so that two releases with other inputs serve next to each other. Callers ask
the endpoints; to switch is to replace their configurations. S3 has no rename: a model is there from the
moment that its configuration is, which is written last and removed first.
"""

import hashlib
import re
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from watchrank.errors import DeploymentError
from watchrank.export.triton_config import read_config
from watchrank.graphs import check_graph
from watchrank.object_storage import ObjectStore, is_remote
from watchrank.releases import checksum, read_manifest, release_numbers
from watchrank.storage import clear_killed, locked

Location = Path | str
"""Path of a folder, or s3://bucket/prefix."""

CONFIG = "config.pbtxt"
GRAPH = "model.onnx"
VERSION = "1"

_RUNNERS = {("", "onnxruntime"), ("ensemble", "")}
_PARAMETERS = {"intra_op_thread_count"}
_FIELDS = {
    "name",
    "platform",
    "backend",
    "max_batch_size",
    "input",
    "output",
    "version_policy",
    "instance_group",
    "dynamic_batching",
    "ensemble_scheduling",
    "parameters",
}
"""What a release's configuration may say. Others load libraries, agents or scripts into the server."""

_NUMBERED = re.compile(r"(?P<model>.+)_(?P<release>\d{6})")


def name_of(model: str, release: int) -> str:
    """Return the name under which a model of a release is loaded."""
    return f"{model}_{release:06d}"


def models_of(repository: Location, release: int) -> list[str]:
    """Return the names of the models of a release that are there."""
    return [name for name in _models(repository) if name.endswith(f"_{release:06d}")]


def releases(repository: Location) -> list[int]:
    """Return the numbers of the releases of which something is there, in order."""
    found = map(_NUMBERED.fullmatch, _models(repository))
    return sorted({int(match["release"]) for match in found if match})


def serving(repository: Location, endpoint: str) -> int | None:
    """Return the release that an endpoint points to, or None when there is none."""
    text = read_endpoint(repository, endpoint)
    return None if text is None else release_of(read_config(text))


def release_of(config: ModelConfig) -> int:
    """Return the release that the configuration of an endpoint points to."""
    match = _NUMBERED.fullmatch(config.ensemble_scheduling.step[0].model_name)
    assert match, f"{config.name} points to no release"
    return int(match["release"])


def endpoints(repository: Location) -> list[str]:
    """Return the names of the endpoints."""
    return [name for name in _models(repository) if not _NUMBERED.fullmatch(name)]


def loaded(repository: Location) -> list[str]:
    """Return the endpoints' models of every release that is there: what a server starts with, beside them."""
    there = _models(repository)
    names = (name_of(name, release) for release in releases(repository) for name in endpoints(repository))
    return [name for name in names if name in there]


@contextmanager
def held(repository: Location) -> Iterator[None]:
    """Hold a repository for a deployment, and remove what killed ones left.

    A folder is waited for while another process holds it. Nothing holds S3: let one at a time deploy there.

    Raises:
        InputError: the repository is at an address of another kind.
        DeploymentError: it cannot be used.
    """
    if is_remote(str(repository)):
        _objects(repository).make_folder("")  # shows that there is a bucket, and the right to write
        _clear(repository)
        yield
        return
    with locked(Path(repository)):
        clear_killed(Path(repository))
        _clear(repository)
        yield


def check(repository: Path, folders: Iterable[Path]) -> None:
    """Check the graphs that a server starts with, and that they are those of their releases.

    Args:
        repository: the model repository.
        folders: folders of releases; a release that is in none of them is not compared.

    Raises:
        DeploymentError: a graph must not be loaded, or is not the one of its release.
    """
    known = [folder / f"{number:06d}" for folder in folders for number in release_numbers(folder)]
    for number in releases(repository):
        manifests = [read_manifest(release)["files"] for release in known if int(release.name) == number]
        for name in models_of(repository, number):
            graph = repository / name / VERSION / GRAPH
            if graph.is_file():
                check_graph(graph)
                expected = {files.get(f"{name[:-7]}/{GRAPH}") for files in manifests}
                if expected and checksum(graph) not in expected:
                    raise DeploymentError(
                        f"{graph} is not the graph of its release; remove {repository} and deploy again."
                    )


def publish(folder: Path, release: int, repository: Location) -> None:
    """Write the models of a release under its number; no server takes them up before it is told to.

    Only one process at a time publishes: the caller holds the repository.

    Args:
        folder: of the release: one folder a model, with `config.pbtxt` and, but for ensembles, `model.onnx`.
        release: its number.
        repository: the model repository.

    Raises:
        DeploymentError: a configuration cannot be read, another release of this number is there, or the
            repository cannot be used.
        OSError: a file cannot be read.
    """
    configs = {path.parent.name: _read(path) for path in sorted(folder.glob(f"*/{CONFIG}"))}
    for model, config in configs.items():
        _check_config(folder / model / CONFIG, config, configs)
    objects, there = _objects(repository), _models(repository)
    for model in sorted(configs, key=lambda model: configs[model].platform == "ensemble"):
        config, name = configs[model], name_of(model, release)
        config.name = name
        for step in config.ensemble_scheduling.step:
            step.model_name = name_of(step.model_name, release)
        graph = folder / model / GRAPH
        if name in there:
            _check_same(repository, name, config, graph)
            continue
        objects.make_folder(f"{name}/{VERSION}")  # Triton wants it, also of an ensemble
        if graph.is_file():
            with graph.open("rb") as source:
                objects.write(f"{name}/{VERSION}/{GRAPH}", source)
        objects.replace(f"{name}/{CONFIG}", text_format.MessageToString(config).encode())


def point(endpoint: str, release: int, repository: Location) -> None:
    """Let an endpoint point to a release that is published."""
    target = read_endpoint(repository, name_of(endpoint, release))
    assert target is not None, f"release {release} has no model {endpoint}"
    config = _endpoint(endpoint, read_config(target))
    write_endpoint(repository, endpoint, text_format.MessageToString(config))


def read_endpoint(repository: Location, endpoint: str) -> str | None:
    """Return the configuration of an endpoint, or None when there is none."""
    content = _objects(repository).read(f"{endpoint}/{CONFIG}")
    return None if content is None else content.decode()


def write_endpoint(repository: Location, endpoint: str, config: str | None) -> None:
    """Write the configuration of an endpoint, or remove the endpoint when it is None."""
    if config is None:
        _remove(repository, endpoint)
        return
    objects = _objects(repository)
    objects.make_folder(f"{endpoint}/{VERSION}")
    objects.replace(f"{endpoint}/{CONFIG}", config.encode())


def remove(repository: Location, release: int) -> None:
    """Remove a release; each of its models goes at once."""
    for name in reversed(models_of(repository, release)):
        _remove(repository, name)


def _objects(repository: Location) -> ObjectStore:
    return ObjectStore(str(repository), "model repository", DeploymentError)


def _models(repository: Location) -> list[str]:
    """Return the names of all models and endpoints that are there, in order."""
    return _objects(repository).holding(CONFIG)


def _remove(repository: Location, name: str) -> None:
    objects = _objects(repository)
    objects.remove(f"{name}/{CONFIG}")
    objects.remove_folder(name)


def _clear(repository: Location) -> None:
    """Remove the models that killed deployments left without their configuration."""
    objects = _objects(repository)
    for name in {*objects.folders()} - {*objects.holding(CONFIG)}:
        if _NUMBERED.fullmatch(name):
            objects.remove_folder(name)


def _endpoint(name: str, target: ModelConfig) -> ModelConfig:
    """Return the configuration by which callers reach a release's model, with the same inputs and outputs."""
    config = ModelConfig(name=name, platform="ensemble", max_batch_size=target.max_batch_size)
    config.input.extend(target.input)
    config.output.extend(target.output)
    if target.platform == "ensemble":
        config.ensemble_scheduling.CopyFrom(target.ensemble_scheduling)
        return config
    step = config.ensemble_scheduling.step.add(model_name=target.name, model_version=-1)
    step.input_map.update({tensor.name: tensor.name for tensor in target.input})
    step.output_map.update({tensor.name: tensor.name for tensor in target.output})
    return config


def _read(path: Path) -> ModelConfig:
    try:
        return read_config(path.read_text(encoding="utf-8"))
    except text_format.ParseError as error:
        raise DeploymentError(f"{path} is no configuration of Triton: {error}; export it again.") from None


def _check_config(path: Path, config: ModelConfig, models: Container[str]) -> None:
    """Refuse a configuration that asks the server for more than to run the release's graphs."""
    asked = {field.name for field, _ in config.ListFields()} - _FIELDS | {*config.parameters} - _PARAMETERS
    steps = config.ensemble_scheduling.step
    if (config.platform, config.backend) not in _RUNNERS:
        asked.add(f"the backend {config.backend or config.platform!r}")
    asked |= {step.model_name for step in steps if step.model_name not in models}
    if asked:
        raise DeploymentError(
            f"{path} must not be loaded: it asks for {min(asked)}, which no release does; export it again."
        )


def _check_same(repository: Location, name: str, config: ModelConfig, graph: Path) -> None:
    objects = _objects(repository)
    same = read_config((objects.read(f"{name}/{CONFIG}") or b"").decode()) == config
    if same and graph.is_file():
        with objects.open(f"{name}/{VERSION}/{GRAPH}") as there:
            same = hashlib.file_digest(there, "sha256").hexdigest() == checksum(graph)
    if not same:
        raise DeploymentError(
            f"{repository}/{name} holds another release of the same number; give the deployment a repository "
            "of its own."
        )
