"""torch to ONNX: the serving graph, at the opset and IR version of the oldest supported Triton."""

import itertools
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import onnx
import torch
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from watchrank.config import ExportSettings
from watchrank.schema import CANDIDATES
from watchrank.schema import Tensor as TensorSpec
from watchrank.storage import atomic_path

LOOKUP = ("watchrank", "Lookup")
"""The operator that `models.lookup` leaves in the graph, as (domain, type)."""

DYNAMIC_AXES = {(CANDIDATES,): ("candidates",), (CANDIDATES, CANDIDATES): ("words", "ngrams")}
"""The names of the axes that have no fixed size, beside the batch: of candidates, and of a text."""

ML_OPSET = 4
"""ai.onnx.ml: the first with a LabelEncoder that takes tensors; ONNX Runtime 1.19 has it."""


class _Positional(nn.Module):
    """Takes the features in a fixed order and gives them to the module by name."""

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.module = module
        self.names = list(names)

    def forward(self, *values: Tensor) -> Tensor | tuple[Tensor, ...]:
        answer: Tensor | tuple[Tensor, ...] = self.module(dict(zip(self.names, values, strict=True)))
        return answer


def export_onnx(
    module: nn.Module,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    target: Path,
    settings: ExportSettings,
) -> None:
    """Write the serving graph of `module` (see `serving_graph`) to the file `target`."""
    save_graph(serving_graph(module, inputs, outputs, settings), target)


def as_model(graph: GraphProto, settings: ExportSettings) -> ModelProto:
    """Return a graph that was built by hand, with its opsets and IR version, checked."""
    opsets = [helper.make_opsetid("", settings.opset), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=settings.ir_version)
    onnx.checker.check_model(model, full_check=True)
    return model


def save_graph(model: ModelProto, target: Path) -> None:
    """Write a graph as one file, atomically."""
    with atomic_path(target) as fresh:
        onnx.save(model, fresh)


def serving_graph(
    module: nn.Module, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], settings: ExportSettings
) -> ModelProto:
    """Return the graph of `module`, which maps a dict of features to one tensor or a tuple of them.

    Args:
        module: in evaluation mode, on the CPU.
        inputs: the features that the module reads; they become the graph's inputs, in this order.
        outputs: the names of the answers.
        settings: opset and IR version.

    Raises:
        AssertionError: torch exported another opset than it was asked for.
    """
    names = [spec.name for spec in inputs]
    axes = {axis: torch.export.Dim(axis) for axis in ("batch", *itertools.chain(*DYNAMIC_AXES.values()))}
    shapes = tuple(
        dict(enumerate(axes[axis] for axis in ("batch", *DYNAMIC_AXES.get(spec.dims, ())))) for spec in inputs
    )
    answers = [spec.name for spec in outputs]
    model = _export(_Positional(module, names), example(inputs), names, answers, shapes, settings)
    _use_label_encoders(model)
    model.ir_version = settings.ir_version
    onnx.checker.check_model(model, full_check=True)
    return model


def example(inputs: Sequence[TensorSpec], batch: int = 3, candidates: int = 5) -> tuple[Tensor, ...]:
    """Return tensors of the inputs' dtypes, [batch, *dims], all ones."""
    return tuple(
        torch.ones(
            (batch, *(candidates if size == CANDIDATES else size for size in spec.dims)),
            dtype=torch.int64 if spec.dtype == "int64" else torch.float32,
        )
        for spec in inputs
    )


def _export(
    module: nn.Module,
    arguments: tuple[Tensor, ...],
    names: list[str],
    outputs: list[str],
    shapes: tuple[dict[int, torch.export.Dim], ...],
    settings: ExportSettings,
) -> ModelProto:
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)  # no torchvision
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            arguments,
            dynamo=True,
            input_names=names,
            output_names=outputs,
            dynamic_shapes=(shapes,),
            opset_version=settings.opset,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    opset = next(entry.version for entry in model.opset_import if entry.domain == "")
    assert opset == settings.opset, f"asked for opset {settings.opset}, torch exported {opset}"
    return model


def _use_label_encoders(model: ModelProto) -> None:
    """Replace each `watchrank::Lookup(ids, keys)` by the hash table of its keys."""
    graph = model.graph
    tables = {tensor.name: tensor for tensor in graph.initializer}
    nodes = [
        _label_encoder(node, tables) if (node.domain, node.op_type) == LOOKUP else node for node in graph.node
    ]
    read = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
    versions = {entry.domain: entry.version for entry in model.opset_import}
    del model.opset_import[:]
    model.opset_import.extend(
        [helper.make_opsetid("", versions[""]), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    )


def _label_encoder(node: NodeProto, tables: dict[str, TensorProto]) -> NodeProto:
    ids, keys = node.input
    values = numpy_helper.to_array(tables[keys])
    rows = range(1, len(values) + 1)
    return helper.make_node(
        "LabelEncoder",
        [ids],
        list(node.output),
        name=node.name,
        domain="ai.onnx.ml",
        keys_tensor=helper.make_tensor("keys", TensorProto.INT64, [len(values)], values),
        values_tensor=helper.make_tensor("values", TensorProto.INT64, [len(values)], rows),
        default_tensor=helper.make_tensor("default", TensorProto.INT64, [1], [0]),
    )
