"""Feature values of the candidates, as one ONNX graph: video ids in, a tensor a feature out.

The values are those of one instant, as Feast has them. They are renewed by a release of their own, with no
training (`export.release.refresh_release`).
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pandas as pd
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from watchrank.config import ExportSettings
from watchrank.export.onnx import as_model
from watchrank.feature_store import VIDEO_TABLES, historical_features
from watchrank.schema import CANDIDATES, EVENT_TIMESTAMP, PAD_ID, VIDEO_STATISTICS, VIDEO_TENSORS, Tensor

if TYPE_CHECKING:
    from feast import FeatureStore

VIDEOS = Tensor(name="video_ids", dtype="int64", dims=(CANDIDATES,), description="the candidates; -1 is none")


def catalogue_features(
    store: "FeatureStore", video_ids: NDArray[np.int64], at: datetime
) -> dict[str, NDArray[Any]]:
    """Return the features of N videos as Feast knows them at the time `at`, each [N], by name."""
    rows = pd.DataFrame({"video_id": video_ids, EVENT_TIMESTAMP: pd.Timestamp(at).as_unit("us")})
    return historical_features(store, VIDEO_TABLES, rows)


def feature_outputs(names: Sequence[str]) -> list[Tensor]:
    """Return the outputs of the graph for the features of these names, in the order of the schema."""
    return [spec for spec in VIDEO_TENSORS if spec.name in names and spec.name != "video_id"]


def videos_of(graph: Path) -> NDArray[np.int64]:
    """Return the ids of a graph's videos."""
    encoder = next(node for node in onnx.load(graph).graph.node if node.op_type == "LabelEncoder")
    keys = next(attribute for attribute in encoder.attribute if attribute.name == "keys_tensor")
    return numpy_helper.to_array(keys.t)


def outputs_of(graph: Path) -> list[Tensor]:
    """Return the features that a graph answers."""
    return feature_outputs([output.name for output in onnx.load(graph).graph.output])


def feature_graph(
    video_ids: NDArray[np.int64],
    features: Mapping[str, NDArray[Any]],
    outputs: Sequence[Tensor],
    settings: ExportSettings,
) -> ModelProto:
    """Return the graph `video_ids` [B, C] -> each feature [B, C].

    Args:
        video_ids: [N], each once.
        features: values [N] by name; those of `outputs` are used.
        outputs: the features to answer. A video that is not among `video_ids` has the values that the feature
            store gives an unknown one: ids -1, counts 0, other numbers NaN.
        settings: opset and IR version.
    """
    order = np.argsort(video_ids, kind="stable")
    rows = helper.make_node(
        "LabelEncoder",
        [VIDEOS.name],
        ["rows"],
        domain="ai.onnx.ml",
        keys_tensor=helper.make_tensor("keys", TensorProto.INT64, [len(order)], video_ids[order]),
        values_tensor=helper.make_tensor(
            "values", TensorProto.INT64, [len(order)], np.arange(1, len(order) + 1)
        ),
        default_tensor=helper.make_tensor("default", TensorProto.INT64, [1], [0]),
    )
    nodes, tables = [rows], [numpy_helper.from_array(np.array([2]), "last")]
    for dtype in ("int64", "float32"):
        chosen = [spec for spec in outputs if spec.dtype == dtype]
        if chosen:
            table = np.empty((len(order) + 1, len(chosen)), dtype)
            for column, spec in enumerate(chosen):
                table[0, column] = _unknown(spec)
                table[1:, column] = features[spec.name][order]
            tables.append(numpy_helper.from_array(table, dtype))
            nodes += _columns(dtype, chosen)
    graph = helper.make_graph(nodes, "video_features", [_info(VIDEOS)], list(map(_info, outputs)), tables)
    return as_model(graph, settings)


def _columns(table: str, chosen: Sequence[Tensor]) -> list[NodeProto]:
    """Gather a video's row of the table once, then take it apart: [B, C, F] to F times [B, C]."""
    parts = [f"{spec.name}/column" for spec in chosen]
    return [
        helper.make_node("Gather", [table, "rows"], [f"{table}/rows"]),
        helper.make_node("Split", [f"{table}/rows"], parts, axis=2, num_outputs=len(parts)),
        *(
            helper.make_node("Squeeze", [part, "last"], [spec.name])
            for part, spec in zip(parts, chosen, strict=True)
        ),
    ]


def _unknown(spec: Tensor) -> float:
    if spec.name in VIDEO_STATISTICS.names:
        return 0
    return PAD_ID if spec.dtype == "int64" else float("nan")


def _info(spec: Tensor) -> onnx.ValueInfoProto:
    kind = TensorProto.INT64 if spec.dtype == "int64" else TensorProto.FLOAT
    return helper.make_tensor_value_info(spec.name, kind, ["batch", "candidates"])
