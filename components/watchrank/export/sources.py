"""Candidates of all sources as one list, as an ONNX graph.

Beside the videos of candidate generation stand those that the user's last search finds, if it was not long
ago; a video that both found counts as candidate generation's.
"""

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from watchrank.config import ExportSettings
from watchrank.export.index import SCORES, VIDEOS
from watchrank.export.onnx import as_model
from watchrank.schema import CANDIDATES, PAD_ID, Tensor, text_id

GENERATED, SEARCHED = "candidate_generation", "text_match"
"""The sources, as the log should name them."""

FOUND_VIDEOS, FOUND_SCORES = "found_video_ids", "found_scores"
MERGED_VIDEOS, MERGED_SCORES = "merged_video_ids", "merged_scores"
SOURCE = "candidate_source"
FROM_SEARCH = Tensor(
    name="from_search", dtype="float32", dims=(CANDIDATES,), description="1 where the last search found it"
)

_GRAPH = """
sources () => ()
{
  is_generated = LessOrEqual (nought, video_ids)
  of_generated = Where (is_generated, generated, none)
  since = Sub (now, last_search_time)                           # search
  is_search = LessOrEqual (nought, last_search_time)            # search
  is_late = LessOrEqual (since, recent)                         # search
  is_recent = And (is_search, is_late)                          # search
  asked = Where (is_recent, found_video_ids, none)              # search
  asked_column = Unsqueeze (asked, last)                        # search
  generated_row = Unsqueeze (video_ids, first)                  # search
  is_same = Equal (asked_column, generated_row)                 # search
  same = Cast <to = 7> (is_same)                                # search
  twice = ReduceMax <keepdims = 0> (same, last)                 # search
  is_new = Less (twice, one)                                    # search
  kept = Where (is_new, asked, none)                            # search
  is_kept = LessOrEqual (nought, kept)                          # search
  kept_scores = Where (is_kept, found_scores, lowest)           # search
  of_kept = Where (is_kept, searched, none)                     # search
  merged_video_ids = Concat <axis = 1> (
    kept,                                                       # search
    video_ids)
  merged_scores = Concat <axis = 1> (
    kept_scores,                                                # search
    scores)
  candidate_source = Concat <axis = 1> (
    of_kept,                                                    # search
    of_generated)
  is_searched = Equal (candidate_source, searched)
  from_search = Cast <to = 1> (is_searched)
}
"""


def source_inputs(with_search: bool) -> list[Tensor]:
    """Return the graph's inputs; `with_search` adds what the last search found."""
    generated = [
        _ids(VIDEOS, CANDIDATES, "of candidate generation; -1 is none"),
        _numbers(SCORES, "their scores"),
    ]
    searched = [
        _ids(FOUND_VIDEOS, CANDIDATES, "found by the last search; -1 is none"),
        _numbers(FOUND_SCORES, "their scores"),
        _ids("now", 1, "time of the request, seconds since 1970"),
        _ids("last_search_time", 1, "when the user last searched, or -1"),
    ]
    return [*generated, *searched] if with_search else generated


def source_outputs() -> list[Tensor]:
    """Return the graph's outputs."""
    return [
        _ids(MERGED_VIDEOS, CANDIDATES, "all candidates, each once; -1 is none"),
        _numbers(MERGED_SCORES, "their scores, which compare within a source only"),
        _ids(SOURCE, CANDIDATES, "text id of each one's source; -1 where there is no candidate"),
        FROM_SEARCH,
    ]


def source_graph(*, with_search: bool, recent_seconds: int, settings: ExportSettings) -> ModelProto:
    """Build the graph.

    Args:
        with_search: whether there is a second source.
        recent_seconds: how long a search brings candidates.
        settings: opset and IR version.
    """
    lines = [line for line in _GRAPH.splitlines() if with_search or not line.endswith("# search")]
    graph = onnx.parser.parse_graph("\n".join(lines))
    graph.input.extend(_declared(tensor) for tensor in source_inputs(with_search))
    graph.output.extend(_declared(tensor) for tensor in source_outputs())
    constants = {
        "nought": np.array(0),
        "one": np.array(1),
        "none": np.array(PAD_ID),
        "first": np.array([1]),
        "last": np.array([2]),
        "recent": np.array(recent_seconds),
        "lowest": np.array(-np.inf, np.float32),
        "generated": np.array(text_id(GENERATED)),
        "searched": np.array(text_id(SEARCHED)),
    }
    read = {name for node in graph.node for name in node.input}
    graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in constants.items() if name in read
    )
    return as_model(graph, settings)


def _ids(name: str, length: int, description: str) -> Tensor:
    return Tensor(name=name, dtype="int64", dims=(length,), description=description)


def _numbers(name: str, description: str) -> Tensor:
    return Tensor(name=name, dtype="float32", dims=(CANDIDATES,), description=description)


def _declared(tensor: Tensor) -> onnx.ValueInfoProto:
    kind = TensorProto.INT64 if tensor.dtype == "int64" else TensorProto.FLOAT
    dims = [f"{tensor.name}_count" if length == CANDIDATES else length for length in tensor.dims]
    return helper.make_tensor_value_info(tensor.name, kind, ["batch", *dims])
