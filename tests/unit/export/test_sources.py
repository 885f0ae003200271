import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st

from watchrank.config import ExportSettings
from watchrank.export.sources import GENERATED, SEARCHED, source_graph, source_inputs, source_outputs
from watchrank.schema import text_id

RECENT = 100
NOW = 10_000


def session(**settings):
    graph = source_graph(recent_seconds=RECENT, settings=ExportSettings(), **settings)
    return ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def graph():
    return session(with_search=True)


def run(graph, generated, found=None, searched=NOW):
    """Ask for one row; return the candidates as {video: (score, source)}, in no order."""
    feed = {"video_ids": generated, "scores": [float(10 + place) for place in range(len(generated))]}
    if found is not None:
        feed |= {"found_video_ids": found, "found_scores": [place / 10 for place in range(len(found))]}
        feed |= {"now": [NOW], "last_search_time": [searched]}
    arrays = {
        name: np.array([values], np.float32 if "scores" in name else np.int64)
        for name, values in feed.items()
    }
    answer = dict(zip([o.name for o in graph.get_outputs()], graph.run(None, arrays), strict=True))
    rows = zip(*(answer[spec.name][0].tolist() for spec in source_outputs()), strict=True)
    there = [row for row in rows if row[0] >= 0]
    assert len({row[0] for row in there}) == len(there), "each video comes once"
    assert all((source == text_id(SEARCHED)) == (is_search == 1) for _, _, source, is_search in there)
    return {video: (score, source) for video, score, source, _ in there}


def test_what_both_found_is_candidate_generations(graph):
    assert run(graph, [1, 2, -1], [2, 9]) == {
        1: (10, text_id(GENERATED)),
        2: (11, text_id(GENERATED)),
        9: (pytest.approx(0.1), text_id(SEARCHED)),
    }


@pytest.mark.parametrize(
    ("searched", "counts"), [(NOW - RECENT, True), (NOW - RECENT - 1, False), (-1, False), (NOW + 5, True)]
)
def test_only_a_recent_search_proposes(graph, searched, counts):
    assert (9 in run(graph, [1], [9], searched)) is counts


def test_without_searches_there_is_one_source():
    graph = session(with_search=False)
    assert [i.name for i in graph.get_inputs()] == [spec.name for spec in source_inputs(False)]
    assert run(graph, [4, -1, 5]) == {4: (10, text_id(GENERATED)), 5: (12, text_id(GENERATED))}


def test_the_interface_is_the_declared_one(graph):
    for where, declared in (
        (graph.get_inputs(), source_inputs(True)),
        (graph.get_outputs(), source_outputs()),
    ):
        assert [value.name for value in where] == [spec.name for spec in declared]
        assert [{"int64": "tensor(int64)", "float32": "tensor(float)"}[s.dtype] for s in declared] == [
            value.type for value in where
        ]


IDS = st.lists(st.integers(0, 8), unique=True, max_size=6).map(lambda ids: [*ids, -1])


@given(generated=IDS, found=IDS)
def test_all_are_there_once(graph, generated, found):
    answer = run(graph, generated, found)
    assert answer.keys() == {*generated, *found} - {-1}
    for video, (_, source) in answer.items():
        assert source == text_id(GENERATED if video in generated else SEARCHED)
