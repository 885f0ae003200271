"""The last step of a recommendation as an ONNX graph: the candidates in, the final list out.

Candidates are ordered by what each is worth: its expected watch time, or the score that a ranker of several
tasks gives it. Two things may change that order, for each request apart:

* `diversity` λ: maximal marginal relevance (Carbonell & Goldstein, SIGIR 1998). Each place goes to the
  candidate with the greatest (1 - λ) · relevance - λ · (greatest cosine to a video already placed), where
  relevance is its worth, 0 at the least, over the greatest in the request. The first place goes by worth.
* `channel_limit`: once a channel has so many places, its other videos are passed over.

Of equals, the candidate that was given first wins. `rerank_inputs` and `rerank_outputs` say what goes in and
comes out.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from watchrank.config import ExportSettings
from watchrank.errors import InputError
from watchrank.export.index import LARGEST_FILE, SCORES, VIDEOS
from watchrank.export.onnx import as_model
from watchrank.schema import CANDIDATES, CHANNEL_LIMIT, DIVERSITY, EXPECTED_WATCH_TIME, SCORE, K, Tensor

CHANNEL = "channel_id"
RANKED_VIDEOS, RANKED_SCORES = "ranked_video_ids", "ranked_scores"
RANKED_SECONDS = "ranked_expected_watch_time"
RANKED = "ranked_"
"""Before the name of what is passed on."""

_GRAPH = """
rerank () => ()
{
  # Pad to at least `size` candidates.
  given = Shape <start = 1, end = 2> (video_ids)
  short = Sub (size, given)
  lacking = Max (short, zeros)
  pads = Concat <axis = 0> (zeros, zeros, zeros, lacking)
  ids = Pad (video_ids, pads, none)
  all_scores = Pad (scores, pads, zero)
  times = Pad (expected_watch_time, pads, zero)

  is_candidate = Less (none, ids)
  no_time = IsNaN (times)
  some_times = Where (no_time, zero, times)
  seconds = Clip (some_times, zero, largest)
  worth = Identity (seconds)                                                          # by time
  all_worth = Pad (score, pads, zero)                                                 # by score
  no_worth = IsNaN (all_worth)                                                        # by score
  some_worth = Where (no_worth, zero, all_worth)                                      # by score
  worth = Clip (some_worth, least, largest)                                           # by score
  by_worth = Where (is_candidate, worth, lowest)
  no_share = IsNaN (diversity)
  some_share = Where (no_share, zero, diversity)
  share = Clip (some_share, zero, one)
  wanted = Clip (k, nought, size_scalar)

  limits = Cast <to = 1> (channel_limit)                                              # channels
  greatest_limit = ReduceMax <keepdims = 0> (limits)                                  # channels
  greatest_share = ReduceMax <keepdims = 0> (share)
  greatest = Max (
    greatest_limit,                                                                   # channels
    greatest_share)
  is_greedy = Less (zero, greatest)
  best, places = If (is_greedy) <
    else_branch = plain () => (float[batch, length] t_best, int64[batch, length] t_places)
    {
      t_best, t_places = TopK (by_worth, size)
    },
    then_branch = greedy () => (float[batch, length] g_best, int64[batch, length] g_places)
    {
      rows = ai.onnx.ml.LabelEncoder (ids)
      half = Gather (vectors, rows)
      directions = Cast <to = 1> (half)                                               # [B, C, D]
      turned = Transpose <perm = [0, 2, 1]> (directions)

      greatest_worth = ReduceMax (by_worth, axis)
      is_worth = Less (zero, greatest_worth)
      divisor = Where (is_worth, greatest_worth, one)
      gain = Clip (worth, zero, largest)
      relevance = Div (gain, divisor)
      rest = Sub (one, share)
      weighted = Mul (rest, relevance)
      is_plain = Equal (share, zero)
      values = Where (is_plain, worth, weighted)                                      # no tie by rounding
      candidate_values = Where (is_candidate, values, lowest)
      values_0 = Unsqueeze (candidate_values, axis)                                   # [B, 1, C]
      share_1 = Unsqueeze (share, axis)
      all_shape = Shape (values_0)
      similar_0 = Expand (lowest, all_shape)

      channels = Pad (channel_id, pads, none)                                         # channels
      channels_1 = Unsqueeze (channels, axis)                                         # channels
      is_channel = Less (none, channels)                                              # channels
      is_limit = Less (zero, limits)                                                  # channels
      is_limited = And (is_channel, is_limit)                                         # channels
      limit = Where (is_limited, limits, largest)                                     # channels
      room_0 = Unsqueeze (limit, axis)                                                # channels

      by_worth_1 = Unsqueeze (by_worth, axis)
      best_0, place_0 = TopK (by_worth_1, ones)                                     # [B, 1, 1]
      one_shape = Shape (place_0)
      lowest_1 = Expand (lowest, one_shape)
      most = ReduceMax <keepdims = 0> (wanted)
      steps = Max (most, at_least_one)
      last_values, last_similar,
      last_room,                                                                      # channels
      last_best, last_place, each_best, each_place = Loop (
        steps, always, values_0, similar_0,
        room_0,                                                                       # channels
        best_0, place_0
      ) <body = place_one (
          int64 step, bool go, float[batch, 1, all] value, float[batch, 1, all] similar,
          float[batch, 1, all] room,                                                  # channels
          float[batch, 1, 1] value_here, int64[batch, 1, 1] place
        ) => (
          bool go_on, float[batch, 1, all] next_value, float[batch, 1, all] next_similar,
          float[batch, 1, all] next_room,                                             # channels
          float[batch, 1, 1] next_best, int64[batch, 1, 1] next_place,
          float[batch, 1, 1] best_here, int64[batch, 1, 1] place_here
        )
        {
          go_on = Identity (go)
          best_here = Identity (value_here)
          place_here = Identity (place)
          direction = GatherND <batch_dims = 1> (directions, place)                   # [B, 1, D]
          cosine = MatMul (direction, turned)
          next_similar = Max (similar, cosine)
          channel = GatherElements <axis = 2> (channels_1, place)                     # channels
          is_same = Equal (channels_1, channel)                                       # channels
          used = Cast <to = 1> (is_same)                                              # channels
          next_room = Sub (room, used)                                                # channels
          is_room = Less (zero, next_room)                                            # channels
          ceiling = Where (is_room, largest, lowest)                                  # channels
          unplaced = ScatterElements <axis = 2> (value, place, lowest_1)
          next_value = Min (
            ceiling,                                                                  # channels
            unplaced)
          penalty = Mul (share_1, next_similar)
          marginal = Sub (next_value, penalty)
          next_best, next_place = TopK (marginal, ones)
        }>
      best_list = Squeeze (each_best, last_axes)                                      # [steps, B]
      place_list = Squeeze (each_place, last_axes)
      best_rows = Transpose (best_list)
      place_rows = Transpose (place_list)
      unfilled = Sub (size, steps)
      end_pads = Concat <axis = 0> (zeros, zeros, zeros, unfilled)
      g_best = Pad (best_rows, end_pads, lowest)
      g_places = Pad (place_rows, end_pads, nought)
    }>

  is_within = Less (ranks, wanted)
  is_found = Less (lowest, best)
  is_ranked = And (is_within, is_found)
  their_ids = GatherElements <axis = 1> (ids, places)
  their_seconds = GatherElements <axis = 1> (seconds, places)
  their_scores = GatherElements <axis = 1> (all_scores, places)
  ranked_video_ids = Where (is_ranked, their_ids, none)
  ranked_expected_watch_time = Where (is_ranked, their_seconds, zero)
  ranked_scores = Where (is_ranked, their_scores, zero)
PASSED}
"""
"""In ONNX's text syntax; without channels the lines that end in `# channels` are left out, and of those that
end in `# by time` and `# by score` one kind. At PASSED comes `_PASSED` for each further tensor.

A loop over the places keeps each candidate's value, its greatest cosine to those placed and the room that its
channel has left. It finds the next place's video at the end of a step, so that the first can go by relevance.
On one core this is faster up to some 50 places than to compute all C x C cosines first.
"""

_PASSED = """\
  all_NAME = Pad (NAME, pads, zero)
  their_NAME = GatherElements <axis = 1> (all_NAME, places)
  ranked_NAME = Where (is_ranked, their_NAME, zero)
"""


def rerank_inputs(with_channels: bool, passed: Sequence[str] = ()) -> list[Tensor]:
    """Return the graph's inputs.

    Args:
        with_channels: add the two that a limit of videos a channel needs.
        passed: further numbers of the candidates that come out in the answer's order; by `score`, when it
            is among them, videos are ranked.
    """
    channel = _ids(CHANNEL, CANDIDATES, "their channels; -1 is unknown, to which no limit applies")
    return [
        _ids(VIDEOS, CANDIDATES, "the candidates; -1 is none"),
        _numbers(SCORES, CANDIDATES, "their scores from candidate generation, which are only passed on"),
        _numbers(EXPECTED_WATCH_TIME, CANDIDATES, "expected seconds of watching; NaN counts as 0"),
        *(_numbers(name, CANDIDATES, f"their {name}") for name in passed),
        *([channel] if with_channels else []),
        K,
        DIVERSITY,
        *([CHANNEL_LIMIT] if with_channels else []),
    ]


def rerank_outputs(size: int, passed: Sequence[str] = ()) -> list[Tensor]:
    """Return the graph's outputs, best first, for answers of `size` places; `passed` as in the inputs."""
    return [
        _ids(RANKED_VIDEOS, size, "the videos, best first; -1 past k or where none is left"),
        _numbers(RANKED_SECONDS, size, "their expected seconds of watching; 0 where there is no video"),
        _numbers(RANKED_SCORES, size, "their scores from candidate generation; 0 where there is no video"),
        *(_numbers(f"{RANKED}{name}", size, f"their {name}; 0 where there is no video") for name in passed),
    ]


def directions_of(graph: Path) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the ids [N] and the directions [N, D] of the videos that a graph re-ranks by, sorted by id."""
    model = onnx.load(graph)
    (stored,) = (tensor for tensor in model.graph.initializer if tensor.name == "vectors")
    greedy = next(a.g for node in model.graph.node for a in node.attribute if a.name == "then_branch")
    lookup = next(node for node in greedy.node if node.op_type == "LabelEncoder")
    (keys,) = (a.t for a in lookup.attribute if a.name == "keys_tensor")
    ids = numpy_helper.to_array(keys)
    order = np.argsort(ids)
    return ids[order], numpy_helper.to_array(stored)[1:][order].astype(np.float32)


def rerank_graph(
    vectors: NDArray[np.float32],
    ids: NDArray[np.int64],
    *,
    size: int,
    with_channels: bool,
    settings: ExportSettings,
    passed: Sequence[str] = (),
) -> ModelProto:
    """Build the graph that orders the candidates; see the head of this module.

    Without diversity and limit in the whole batch it is one TopK; otherwise it places one video of every
    row at a time. A row's answer does not depend on the others.

    Args:
        vectors: [N, D], finite; only their directions count, stored as float16, so that a cosine is exact
            to about 1e-3. A video of length 0 or not among `ids` has the cosine 0 to all.
        ids: [N], the catalogue ids, each once and not negative.
        size: places of an answer, the greatest k.
        with_channels: take `channel_id` and `channel_limit`.
        settings: opset and IR version.
        passed: as `rerank_inputs` takes it.

    Raises:
        InputError: what was given does not fit together, or does not fit into one ONNX file.
    """
    _check(vectors, ids, size)
    graph = onnx.parser.parse_graph(_text(with_channels, passed))
    graph.input.extend(_declared(tensor) for tensor in rerank_inputs(with_channels, passed))
    graph.output.extend(_declared(tensor) for tensor in rerank_outputs(size, passed))
    constants = {**_constants(size), "vectors": _directions(vectors)}
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    greedy = next(a.g for node in graph.node for a in node.attribute if a.name == "then_branch")
    lookup = next(node for node in greedy.node if node.op_type == "LabelEncoder")
    table = {"keys": ids, "values": np.arange(1, len(ids) + 1), "default": np.zeros(1, np.int64)}
    lookup.attribute.extend(
        helper.make_attribute(f"{name}_tensor", numpy_helper.from_array(array, name))
        for name, array in table.items()
    )
    return as_model(graph, settings)


def _text(with_channels: bool, passed: Sequence[str]) -> str:
    left_out = {"# by time" if SCORE.name in passed else "# by score"}
    left_out |= set() if with_channels else {"# channels"}
    lines = [line for line in _GRAPH.splitlines() if not line.endswith(tuple(left_out))]
    of_passed = "".join(_PASSED.replace("NAME", name) for name in passed)
    return "\n".join(lines).replace("PASSED", of_passed)


def _ids(name: str, length: int, description: str) -> Tensor:
    return Tensor(name=name, dtype="int64", dims=(length,), description=description)


def _numbers(name: str, length: int, description: str) -> Tensor:
    return Tensor(name=name, dtype="float32", dims=(length,), description=description)


def _declared(tensor: Tensor) -> onnx.ValueInfoProto:
    kind = TensorProto.INT64 if tensor.dtype == "int64" else TensorProto.FLOAT
    dims = ["candidates" if length == CANDIDATES else length for length in tensor.dims]
    return helper.make_tensor_value_info(tensor.name, kind, ["batch", *dims])


def _constants(size: int) -> dict[str, NDArray[Any]]:
    """What the text of the graph refers to by name."""
    return {
        "always": np.array(True),
        "zero": np.array(0, np.float32),
        "one": np.array(1, np.float32),
        "lowest": np.array(-np.inf, np.float32),
        "least": np.array(np.finfo(np.float32).min),
        "largest": np.array(np.finfo(np.float32).max),
        "none": np.array(-1),
        "nought": np.array(0),
        "at_least_one": np.array(1),
        "size_scalar": np.array(size),
        "size": np.array([size]),
        "zeros": np.array([0]),
        "ones": np.array([1]),
        "axis": np.array([1]),
        "last_axes": np.array([2, 3]),
        "ranks": np.arange(size)[None],
    }


def _directions(vectors: NDArray[np.float32]) -> NDArray[np.float16]:
    """[N + 1, D]: 0 for a video that is not in the catalogue, then each vector at length 1."""
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    lengths[lengths == 0] = 1
    stored = np.zeros((len(vectors) + 1, vectors.shape[1]), np.float16)
    np.divide(vectors, lengths[:, None], out=stored[1:], dtype=np.float64, casting="same_kind")
    return stored


def _check(vectors: NDArray[np.float32], ids: NDArray[np.int64], size: int) -> None:
    """Raise an InputError for the first thing that is wrong."""
    if size < 1:
        raise InputError(f"The size of an answer is {size}, but it needs at least 1 place.")
    if vectors.ndim != 2 or ids.shape != vectors.shape[:1] or not vectors.size:
        raise InputError(
            f"Reranking was given vectors of shape {list(vectors.shape)} and ids of shape {list(ids.shape)}: "
            "give [N, D] and [N], with N and D at least 1."
        )
    if vectors.dtype != np.float32 or ids.dtype != np.int64:
        raise InputError(
            f"Reranking was given {vectors.dtype} vectors and {ids.dtype} ids: "
            "convert them to float32 and int64."
        )
    if vectors.size * 2 + ids.size * 16 > LARGEST_FILE:
        raise InputError(
            f"The vectors and ids take more than {LARGEST_FILE:,} bytes, the most that one ONNX file holds: "
            "give fewer videos or fewer dimensions."
        )
    if not np.isfinite(vectors).all():
        raise InputError("The vectors hold NaN or infinity: look for the fault in the model that made them.")
    if ids.min() < 0 or len(np.unique(ids)) < len(ids):
        raise InputError("The ids hold one below 0 or one twice: give each video one vector and one id.")
