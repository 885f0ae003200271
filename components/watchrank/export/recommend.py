"""`recommend`: the models of a release as one, run by Triton as an ensemble or here in one process.

user ──candidate_generation──> candidates ──video_features──> their features ──ranking──> expected seconds
                                    └───────────────────────────────────────────────────> rerank ──> answer

Where searches are matched with titles, `text_match` proposes candidates, too, and `sources` makes one list.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from watchrank.export import rerank, sources
from watchrank.export.index import EXCLUDED, SCORES, VIDEOS, WATCHED
from watchrank.export.onnx import save_graph
from watchrank.export.triton_config import Step, ensemble_config, read_config
from watchrank.schema import CANDIDATES, EXPECTED_WATCH_TIME, RECOMMEND_INPUTS, WEIGHT, Tensor

MODEL = "recommend"
CANDIDATE_IDS, CANDIDATE_SCORES, CANDIDATE_SECONDS = (
    "candidates",
    "scores_of_candidates",
    "seconds_of_candidates",
)

RELEASE = Tensor(name="release", dtype="int64", dims=(1,), description="number of the release that answers")

Arrays = Mapping[str, np.ndarray]


def recommend_outputs(size: int, passed: Sequence[Tensor] = ()) -> list[Tensor]:
    """Return the answer of `recommend`: `size` places, of which the first k are filled.

    Args:
        size: the greatest k.
        passed: what the ranker answers beside the expected watch time.
    """
    return [
        Tensor(name="video_ids", dtype="int64", dims=(size,), description="best first; -1: none"),
        Tensor(
            name=EXPECTED_WATCH_TIME,
            dtype="float32",
            dims=(size,),
            description="seconds; 0 where no video is",
        ),
        Tensor(name="candidate_scores", dtype="float32", dims=(size,), description="of candidate generation"),
        *(replace(spec, dims=(size,)) for spec in passed),
        RELEASE,
    ]


def recommend_config(
    candidate_inputs: Sequence[Tensor],
    features: Sequence[Tensor],
    ranking_inputs: Sequence[Tensor],
    ranking_outputs: Sequence[Tensor],
    size: int,
    max_batch_size: int,
    *,
    with_search: bool = False,
) -> str:
    """Return Triton's configuration of the ensemble.

    Args:
        candidate_inputs: of the graph of candidate generation.
        features: what `video_features` answers.
        ranking_inputs: of the ranking graph.
        ranking_outputs: of the ranking graph.
        with_search: whether `text_match` is a second source of candidates.
        size: candidates, and places of an answer.
        max_batch_size: rows of a request.
    """
    of_videos = [spec.name for spec in features]
    of_user = [spec.name for spec in ranking_inputs if spec.dims != (CANDIDATES,)]
    with_channels = "channel_id" in of_videos
    settings = [spec.name for spec in rerank.rerank_inputs(with_channels) if spec.dims == (1,)]
    read = {spec.name for spec in ranking_inputs}
    passed = passed_on(ranking_outputs, with_search=with_search)
    candidates_own = {spec.name: f"{spec.name}_of_candidates" for spec in passed}
    from_sources = {spec.name for spec in sources.source_outputs()} & candidates_own.keys()
    steps = [
        *_source_steps(candidate_inputs, with_search, named=sources.SOURCE in read),
        Step(
            model="video_features",
            inputs={"video_ids": CANDIDATE_IDS},
            outputs={name: name for name in of_videos},
        ),
        Step(
            model="ranking",
            inputs={
                **{name: name for name in of_user},
                **{name: name for name in (*of_videos, sources.SOURCE) if name in read},
                "video_id": CANDIDATE_IDS,
            },
            outputs={
                EXPECTED_WATCH_TIME: CANDIDATE_SECONDS,
                **{name: own for name, own in candidates_own.items() if name not in from_sources},
            },
        ),
        Step(
            model="rerank",
            inputs={
                "video_ids": CANDIDATE_IDS,
                "scores": CANDIDATE_SCORES,
                EXPECTED_WATCH_TIME: CANDIDATE_SECONDS,
                **candidates_own,
                **({"channel_id": "channel_id"} if with_channels else {}),
                **{name: name for name in settings},
            },
            outputs={
                rerank.RANKED_VIDEOS: "video_ids",
                rerank.RANKED_SECONDS: EXPECTED_WATCH_TIME,
                rerank.RANKED_SCORES: "candidate_scores",
                **{f"{rerank.RANKED}{name}": name for name in candidates_own},
                RELEASE.name: RELEASE.name,
            },
        ),
    ]
    taken = {spec.name for spec in candidate_inputs} | set(of_user) | set(settings)
    taken |= {"now", "last_search_time", "search_ngram_ids"} if with_search else set()
    inputs = [spec for spec in RECOMMEND_INPUTS if spec.name in taken]
    inputs += [spec for spec in ranking_inputs if spec.name.endswith(WEIGHT)]
    outputs = recommend_outputs(size, passed)
    return ensemble_config(MODEL, inputs, outputs, steps, max_batch_size=max_batch_size)


def has_sources(ranking_inputs: Sequence[Tensor], *, with_search: bool) -> bool:
    """Return whether the release has the graph that makes one list of the sources' candidates."""
    return with_search or any(spec.name == sources.SOURCE for spec in ranking_inputs)


def _source_steps(candidate_inputs: Sequence[Tensor], with_search: bool, *, named: bool) -> list[Step]:
    """Return the steps that end in the candidates, their scores and, where asked for, their sources."""
    alone = not (with_search or named)
    generation = Step(
        model="candidate_generation",
        inputs={spec.name: spec.name for spec in candidate_inputs},
        outputs={VIDEOS: CANDIDATE_IDS, SCORES: CANDIDATE_SCORES}
        if alone
        else {VIDEOS: "generated", SCORES: "scores_of_generated"},
    )
    if alone:
        return [generation]
    search = Step(
        model=sources.SEARCHED,
        inputs={name: name for name in ("search_ngram_ids", WATCHED, EXCLUDED)},
        outputs={VIDEOS: "found", SCORES: "scores_of_found"},
    )
    own = {
        VIDEOS: "generated",
        SCORES: "scores_of_generated",
        sources.FOUND_VIDEOS: "found",
        sources.FOUND_SCORES: "scores_of_found",
    }
    from_search = sources.FROM_SEARCH.name
    together = Step(
        model="sources",
        inputs={spec.name: own.get(spec.name, spec.name) for spec in sources.source_inputs(with_search)},
        outputs={
            sources.MERGED_VIDEOS: CANDIDATE_IDS,
            sources.MERGED_SCORES: CANDIDATE_SCORES,
            **({sources.SOURCE: sources.SOURCE} if named else {}),  # Triton refuses what no one reads
            **({from_search: f"{from_search}_of_candidates"} if with_search else {}),
        },
    )
    return [generation, search, together] if with_search else [generation, together]


def passed_on(ranking_outputs: Sequence[Tensor], *, with_search: bool) -> list[Tensor]:
    """Return what `recommend` answers with beside the expected watch time: ranking's outputs, the source."""
    answers = [spec for spec in ranking_outputs if spec.name != EXPECTED_WATCH_TIME]
    return [*answers, sources.FROM_SEARCH] if with_search else answers


def set_release(rerank_file: Path, number: int) -> None:
    """Let the last graph say which release it belongs to: `release` [B, 1], for every row of `k` [B, 1]."""
    model = onnx.load(rerank_file)
    graph = model.graph
    for node in [node for node in graph.node if RELEASE.name in node.output]:
        graph.node.remove(node)
    value = helper.make_tensor("value", TensorProto.INT64, [1], [number])
    if RELEASE.name not in {output.name for output in graph.output}:
        graph.node.append(helper.make_node("Shape", ["k"], [f"{RELEASE.name}/shape"]))
        graph.output.append(helper.make_tensor_value_info(RELEASE.name, TensorProto.INT64, ["batch", 1]))
    graph.node.append(
        helper.make_node("ConstantOfShape", [f"{RELEASE.name}/shape"], [RELEASE.name], value=value)
    )
    onnx.checker.check_model(model, full_check=True)
    save_graph(model, rerank_file)


class ReleaseGraphs:
    """A release's graphs in this process, chained as its ensemble says: Triton's answers with no server."""

    def __init__(self, release: Path, threads: int = 1) -> None:
        """Load the graphs of the folder `release`."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        self._config = read_config((release / MODEL / "config.pbtxt").read_text())
        self._steps = self._config.ensemble_scheduling.step
        self._sessions = {
            step.model_name: ort.InferenceSession(
                release / step.model_name / "model.onnx", options, providers=["CPUExecutionProvider"]
            )
            for step in self._steps
        }

    @property
    def models(self) -> set[str]:
        """The names of the graphs."""
        return set(self._sessions)

    def inputs(self, model: str) -> list[str]:
        """Return the names of the inputs of one graph, or of the ensemble when `model` is "recommend"."""
        if model == MODEL:
            return [spec.name for spec in self._config.input]
        return [spec.name for spec in self._sessions[model].get_inputs()]

    def run(self, model: str, inputs: Arrays) -> dict[str, np.ndarray]:
        """Return the outputs of one graph, or of the whole ensemble when `model` is "recommend"."""
        return self._recommend(inputs) if model == MODEL else self._one(model, inputs)

    def _one(self, model: str, inputs: Arrays) -> dict[str, np.ndarray]:
        session = self._sessions[model]
        feed = {name: inputs[name] for name in self.inputs(model)}
        names = [spec.name for spec in session.get_outputs()]
        return dict(zip(names, session.run(names, feed), strict=True))

    def _recommend(self, inputs: Arrays) -> dict[str, np.ndarray]:
        tensors = dict(inputs)
        for step in self._steps:
            answer = self._one(step.model_name, {key: tensors[name] for key, name in step.input_map.items()})
            tensors |= {name: answer[key] for key, name in step.output_map.items()}
        return {spec.name: tensors[spec.name] for spec in self._config.output}
