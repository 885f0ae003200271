"""The index of candidate generation as an ONNX graph: a user's vector in, the K best videos out.

Both variants find the greatest inner products, leave out what the user has watched and what the caller
excludes, and have the same interface:

| input | type | padding |
| --- | --- | --- |
| `user_vector` | float32 [B, D] | |
| `watched_video_ids` | int64 [B, 50] | -1 |
| `excluded_video_ids` | int64 [B, E] | -1 |

| output, best first | type | where no video is left |
| --- | --- | --- |
| `video_ids` | int64 [B, K] | -1 |
| `scores` | float32 [B, K] | -inf |

`exact` scores every video. `inverted_file` scores the lists (`watchrank.export.inverted_file`) whose mean
vector has about the greatest inner product with the user's. All other names begin with `index/`, so that a
tower that ends in `user_vector` can be put in front by `onnx.compose.merge_models`.
"""

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from watchrank.config import ExportSettings
from watchrank.errors import InputError
from watchrank.export.inverted_file import InvertedFile, build_inverted_file
from watchrank.schema import WATCH_HISTORY

Variant = Literal["auto", "exact", "inverted_file"]

USER, WATCHED, EXCLUDED = "user_vector", "watched_video_ids", "excluded_video_ids"
VIDEOS, SCORES = "video_ids", "scores"
BANNED = "index/banned"

EXACT_LIMIT = 200_000
"""Videos up to which `auto` is exact: about 3 ms a query on one core at 64 dimensions."""

LISTS = 8
"""Lists of an inverted file, over √N."""

PROBES = 32
LARGEST_FILE = 2**31 - 2**20
"""Bytes: protobuf's limit, less room for the nodes."""


def build_index(
    vectors: NDArray[np.float32],
    ids: NDArray[np.int64],
    *,
    k: int,
    variant: Variant = "auto",
    lists: int | None = None,
    probes: int | None = None,
    half: bool = False,
    settings: ExportSettings | None = None,
) -> ModelProto:
    """Build the graph that answers with the `k` videos of the greatest inner product.

    Args:
        vectors: [N, D], finite; they need not be normalised.
        ids: [N], the catalogue ids, each once and not negative.
        k: videos an answer; may be more than N.
        variant: `auto` is exact up to `EXACT_LIMIT` videos.
        lists: of the inverted file, about; None is 8 √N. Their number after padding is a little greater.
        probes: lists that are searched; None is 32, and more if those are short of 4 k places. An answer is
            drawn from these lists only: excluding more ids than they hold beyond k leaves fewer than k.
        half: store the inverted file's vectors as float16: half the memory, scores to a relative 1e-3.
        settings: opset and IR version.

    Raises:
        InputError: what was given does not fit together, or does not fit into one ONNX file.
    """
    if variant not in get_args(Variant):
        raise InputError(
            f"There is no index variant {variant!r}: choose from {', '.join(get_args(Variant))}."
        )
    _check_numbers(k=k, lists=lists, probes=probes)
    _check_catalogue(vectors, ids)
    vectors = np.ascontiguousarray(vectors)
    if variant == "exact" or (variant == "auto" and len(ids) <= EXACT_LIMIT):
        graph = exact_graph(vectors, ids, k)
    else:
        lists = lists or max(1, round(LISTS * len(ids) ** 0.5))
        index = build_inverted_file(vectors, ids, lists, least_places=k)
        graph = inverted_file_graph(index, k, probes, half)
    return as_model(graph, settings or ExportSettings())


def as_model(graph: GraphProto, settings: ExportSettings) -> ModelProto:
    """Give a graph its opset and IR version."""
    opset = helper.make_opsetid("", settings.opset)
    return helper.make_model(graph, opset_imports=[opset], ir_version=settings.ir_version)


def exact_graph(vectors: NDArray[np.float32], ids: NDArray[np.int64], k: int) -> GraphProto:
    """Score all videos: vectors [N, D], ids [N]."""
    count, width = vectors.shape
    places = max(count, k)
    biased = np.zeros((width + 1, places), np.float32)
    biased[:width, :count] = vectors.T
    biased[width, count:] = -np.inf
    nodes = _Nodes()
    scores = nodes.add("MatMul", _with_bias(nodes), nodes.constant("vectors", biased))
    best, chosen = _fetched(nodes, scores, k, places)
    all_ids = nodes.constant("ids", np.pad(ids, (0, places - count), constant_values=-1))
    return _graph(nodes, best, nodes.add("Gather", all_ids, chosen), width, k)


def inverted_file_graph(index: InvertedFile, k: int, probes: int | None, half: bool) -> GraphProto:
    """Score the videos of the `probes` lists whose means score best."""
    total, rows, length = index.vectors.shape
    probes = min(total, max(probes or max(PROBES, -(-4 * k // length)), -(-k // length)))
    places = probes * length
    nodes = _Nodes()
    _, nearest = nodes.top(_list_scores(nodes, index.centroids), nodes.constant("probes", [probes]), sorted=0)
    stored = _as_float16(index.vectors) if half else index.vectors
    near = nodes.add("Gather", nodes.constant("vectors", stored), nearest)
    near = nodes.add("Cast", near, to=TensorProto.FLOAT) if half else near
    user = nodes.add("Reshape", _with_bias(nodes), nodes.constant("row", [-1, 1, 1, rows]))
    flat = nodes.constant("flat", [-1, places])
    scores = nodes.add("Reshape", nodes.add("MatMul", user, near), flat)
    near_ids = nodes.add("Reshape", nodes.add("Gather", nodes.constant("ids", index.ids), nearest), flat)
    best, chosen = _fetched(nodes, scores, k, places)
    return _graph(nodes, best, nodes.add("GatherElements", near_ids, chosen, axis=1), rows - 1, k)


class _Nodes:
    """Nodes and constants of a graph, in the order in which they are added."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.tensors: list[TensorProto] = []
        self.bytes = 0

    def constant(self, name: str, value: Any) -> str:
        array = np.asarray(value)
        self.bytes += array.nbytes
        if self.bytes > LARGEST_FILE:
            raise InputError(
                f"The index takes more than {LARGEST_FILE:,} bytes, the most that one ONNX file holds: "
                "give fewer videos, fewer dimensions, or, for the inverted file, half=True."
            )
        self.tensors.append(numpy_helper.from_array(array, f"index/{name}"))
        return self.tensors[-1].name

    def add(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        output = output or f"index/{len(self.nodes)}_{operator}"
        return self._append(operator, inputs, [output], attributes)[0]

    def top(self, scores: str, k: str, best: str | None = None, **attributes: Any) -> tuple[str, str]:
        """Return the names of the greatest scores [B, k] and of their places [B, k]."""
        name = f"index/{len(self.nodes)}_TopK"
        values, places = self._append(
            "TopK", (scores, k), [best or f"{name}_best", f"{name}_places"], attributes
        )
        return values, places

    def _append(
        self, operator: str, inputs: tuple[str, ...], outputs: list[str], attributes: dict[str, Any]
    ) -> list[str]:
        name = f"index/{len(self.nodes)}_{operator}_node"
        self.nodes.append(helper.make_node(operator, inputs, outputs, name=name, **attributes))
        return outputs


def _list_scores(nodes: _Nodes, centroids: NDArray[np.float32]) -> str:
    """[B, C]: about proportional to the inner product with each list's mean, by 8-bit integers.

    The means have 7 bits, so that no processor's 16-bit sums overflow, and a scale each. A user's vector gets
    length 1, so that its rounding does not depend on the rest of the batch.
    """
    scales = np.abs(centroids).max(axis=0) / 63 + np.finfo(np.float32).tiny
    rounded = np.round(centroids / scales).astype(np.int8)
    zero = nodes.constant("zero", np.uint8(128))
    direction = nodes.add("LpNormalization", USER, axis=1)
    user = nodes.add("QuantizeLinear", direction, nodes.constant("step", np.float32(1 / 127)), zero)
    products = nodes.add("MatMulInteger", user, nodes.constant("centroids", rounded), zero)
    return nodes.add(
        "Mul", nodes.add("Cast", products, to=TensorProto.FLOAT), nodes.constant("scales", scales)
    )


def _with_bias(nodes: _Nodes) -> str:
    """[B, D + 1]: the user's vector and a 1, which meets the bias in the videos' vectors."""
    return nodes.add(
        "Pad", USER, nodes.constant("one_more", [0, 0, 0, 1]), nodes.constant("one", np.float32(1))
    )


def _fetched(nodes: _Nodes, scores: str, k: int, places: int) -> tuple[str, str]:
    """The best of scores [B, places], and where they are: so many that k are left once the banned are out."""
    banned = nodes.add("Concat", WATCHED, EXCLUDED, axis=1, output=BANNED)
    count = nodes.add("Shape", banned, start=1, end=2)
    wanted = nodes.add("Add", count, nodes.constant("k", [k]))
    return nodes.top(scores, nodes.add("Min", wanted, nodes.constant("places", [places])), sorted=0)


def _graph(nodes: _Nodes, scores: str, ids: str, width: int, k: int) -> GraphProto:
    """Leave out the banned of the fetched scores and ids [B, M]; return the whole graph."""
    pairs = nodes.add(
        "Equal",
        nodes.add("Unsqueeze", ids, nodes.constant("last", [2])),
        nodes.add("Unsqueeze", BANNED, nodes.constant("middle", [1])),
    )
    matches = nodes.add("Cast", pairs, to=TensorProto.FLOAT)
    out = nodes.add("Cast", nodes.add("ReduceMax", matches, "index/last", keepdims=0), to=TensorProto.BOOL)
    left = nodes.add("Where", out, nodes.constant("lowest", np.float32(-np.inf)), scores)
    left_ids = nodes.add("Where", out, nodes.constant("none", np.int64(-1)), ids)
    _, places = nodes.top(left, "index/k", best=SCORES)
    nodes.add("GatherElements", left_ids, places, axis=1, output=VIDEOS)
    inputs = [
        helper.make_tensor_value_info(USER, TensorProto.FLOAT, ["batch", width]),
        helper.make_tensor_value_info(WATCHED, TensorProto.INT64, ["batch", WATCH_HISTORY]),
        helper.make_tensor_value_info(EXCLUDED, TensorProto.INT64, ["batch", "excluded"]),
    ]
    outputs = [
        helper.make_tensor_value_info(VIDEOS, TensorProto.INT64, ["batch", k]),
        helper.make_tensor_value_info(SCORES, TensorProto.FLOAT, ["batch", k]),
    ]
    return helper.make_graph(nodes.nodes, "index", inputs, outputs, nodes.tensors)


def _as_float16(vectors: NDArray[np.float32]) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        stored = vectors.astype(np.float16)
    if not np.array_equal(np.isinf(stored), np.isinf(vectors)):
        raise InputError(
            "The vectors hold values beyond float16's 65,504: scale them down, or build with half=False."
        )
    return stored


def _check_numbers(**numbers: int | None) -> None:
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}, but an index needs at least 1: give a positive number.")


def _check_catalogue(vectors: NDArray[np.float32], ids: NDArray[np.int64]) -> None:
    """Raise an InputError for the first thing that is wrong."""
    if vectors.ndim != 2 or ids.shape != vectors.shape[:1] or not vectors.size:
        raise InputError(
            f"The index was given vectors of shape {list(vectors.shape)} and ids of shape {list(ids.shape)}: "
            "give [N, D] and [N], with N and D at least 1."
        )
    if vectors.dtype != np.float32 or ids.dtype != np.int64:
        raise InputError(
            f"The index was given {vectors.dtype} vectors and {ids.dtype} ids: "
            "convert them to float32 and int64."
        )
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise InputError(
            f"The vectors of {len(bad):,} videos hold NaN or infinity, the first that of video "
            f"{ids[bad[0]]}: leave those videos out, or look for the fault in the model that made them."
        )
    if ids.min() < 0:
        raise InputError(f"The index was given the id {ids.min()}, but ids are 0 or greater: -1 is padding.")
    once, times = np.unique(ids, return_counts=True)
    if len(once) < len(ids):
        raise InputError(
            f"The index was given {len(ids) - len(once):,} ids more than once, among them "
            f"{once[times > 1][0]}: give each video one vector."
        )
