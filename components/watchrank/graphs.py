"""ONNX files from elsewhere: what must hold before a runtime opens them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError, Message

from watchrank.errors import DeploymentError
from watchrank.releases import verify

LARGEST_GRAPH = 2**31 - 1
"""Bytes; protobuf reads no more."""

OPSETS = {"": 21, "ai.onnx.ml": 4}
"""The operators that may be there: the newest version of each domain that the oldest Triton (24.10) has."""

IR_VERSION = 10
"""The newest that it reads."""


def checked(release: Path, max_bytes: int = LARGEST_GRAPH) -> dict[str, Any]:
    """Verify a release's files and check its graphs, before one of them is opened; return the manifest.

    Raises:
        InputError: the folder is no release.
        DeploymentError: it is damaged, or a graph must not be loaded.
    """
    manifest = verify(release)
    for graph in sorted(release.rglob("*.onnx")):
        check_graph(graph, max_bytes)
    return manifest


def check_graph(graph: Path, max_bytes: int = LARGEST_GRAPH) -> None:
    """Check that a file is one whole, valid ONNX graph of standard operators, and points to no other file.

    Raises:
        DeploymentError: it is not; the message says what it is.
    """
    if fault := _fault(graph, max_bytes):
        raise DeploymentError(f"{graph} must not be loaded: {fault}; export it again.")


def _fault(graph: Path, max_bytes: int) -> str | None:
    size = graph.stat().st_size
    if size > max_bytes:
        return f"it has {size:,} bytes, more than the {max_bytes:,} of deployment.max_graph_bytes"
    try:
        model = onnx.load(graph, load_external_data=False)
    except DecodeError:
        return "it is no ONNX file"
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _tensors(model)):
        return "it keeps weights in another file"
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    if unknown := sorted(domain for domain in opsets if domain not in OPSETS):
        return f"it has operators of the domain {unknown[0]!r}"
    if model.ir_version > IR_VERSION or any(opsets[domain] > OPSETS[domain] for domain in opsets):
        return f"IR {model.ir_version} and opsets {opsets} are newer than Triton 24.10 reads"
    try:
        onnx.checker.check_model(graph)
    except onnx.checker.ValidationError as error:
        return f"onnx.checker says {str(error).splitlines()[0].rstrip('.')!r}"
    return None


def _tensors(message: Message) -> Iterator[onnx.TensorProto]:
    """Yield every tensor of a graph: weights, constants, those of graphs inside of it."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for each in value if field.is_repeated else [value]:
                yield from _tensors(each)
