import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from watchrank.config import ExportSettings
from watchrank.errors import InputError
from watchrank.export.rerank import rerank_graph, rerank_inputs, rerank_outputs

HUGE = np.finfo(np.float32).max
TINY = np.float32(1e-45)
NAN = float("nan")


def directions(vectors):
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return (vectors / np.where(lengths == 0, 1, lengths)).astype(np.float16).astype(np.float32)


def rerank(vectors, ids, feed, size):
    """The definition, one row, one place and one candidate at a time."""
    known = dict(zip(ids.tolist(), directions(vectors), strict=True))
    nowhere = np.zeros(vectors.shape[1], np.float32)
    answers = ([], [], [])
    for row in range(len(feed["k"])):
        one = {name: value[row] for name, value in feed.items()}
        where = [known.get(video, nowhere) for video in one["video_ids"].tolist()]
        chosen = places(one, where, min(max(int(one["k"][0]), 0), size))
        seconds = np.nan_to_num(one["expected_watch_time"])
        for answer, values, empty in zip(
            answers, (one["video_ids"], seconds, one["scores"]), (-1, 0, 0), strict=True
        ):
            answer.append([*values[chosen], *[empty] * (size - len(chosen))])
    return tuple(np.array(a, t) for a, t in zip(answers, (np.int64, np.float32, np.float32), strict=True))


def places(one, where, k):
    seconds = np.nan_to_num(one["expected_watch_time"])
    share = np.clip(np.nan_to_num(one["diversity"][0]), 0, 1, dtype=np.float32)
    channels = one.get("channel_id", np.full(len(seconds), -1)).tolist()
    limit = one.get("channel_limit", [0])[0]
    candidates = np.flatnonzero(one["video_ids"] >= 0).tolist()
    longest = max((seconds[place] for place in candidates), default=0) or np.float32(1)
    chosen = []
    while len(chosen) < k:
        taken = [channels[place] for place in chosen]
        left = [
            place
            for place in candidates
            if place not in chosen
            and not (limit > 0 and channels[place] >= 0 and taken.count(channels[place]) >= limit)
        ]
        if not left:
            break

        def value(place):
            if share == 0 or not chosen:
                return seconds[place]
            nearest = max(where[place] @ where[other] for other in chosen)
            return (np.float32(1) - share) * (seconds[place] / longest) - share * nearest

        chosen.append(max(left, key=value))  # of equals the first
    return chosen


def session(model):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def build(vectors, ids, size, with_channels=True):
    return rerank_graph(vectors, ids, size=size, with_channels=with_channels, settings=ExportSettings())


def request(video_ids, seconds, diversity=0.0, k=100, channel_id=-1, channel_limit=0):
    """A feed of one row for each list in `video_ids`; the scores tell the places apart."""
    video_ids = np.array(video_ids, np.int64)
    batch, count = video_ids.shape

    def column(value, dtype):
        return np.broadcast_to(np.array(value, dtype).reshape(-1, 1), (batch, 1))

    return {
        "video_ids": video_ids,
        "scores": np.where(video_ids < 0, -np.inf, 1.0 + np.arange(count)).astype(np.float32),
        "expected_watch_time": np.broadcast_to(np.array(seconds, np.float32), (batch, count)),
        "channel_id": np.broadcast_to(np.array(channel_id, np.int64), (batch, count)),
        "k": column(k, np.int64),
        "diversity": column(diversity, np.float32),
        "channel_limit": column(channel_limit, np.int64),
    }


def run(where, feed):
    where = where if isinstance(where, ort.InferenceSession) else session(where)
    return where.run(None, {value.name: feed[value.name] for value in where.get_inputs()})


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


# Lengths are 0, 1 or 2 before they are stretched, so that all cosines are exact and many are equal.
EXACT = np.array(
    [
        *([1, 0, 0, 0], [0, 3, 0, 0], [-2, 0, 0, 0], [2, 0, 0, 0], [0, 0, 0, 0]),
        *([1, 1, 1, 1], [3, 3, -3, -3], [-1, 1, -1, 1], [1, 1, 1, -1], [0, 0, 0, 5]),
    ],
    np.float32,
)
EXACT_IDS = np.array([7, 0, 2**60, 1, 5, 9, 11, 10**15, 3, 4])
SESSIONS = {
    (size, with_channels): session(build(EXACT, EXACT_IDS, size, with_channels))
    for size in (1, 4, 9)
    for with_channels in (False, True)
}


def matrix(values, batch, count):
    return st.lists(
        st.lists(st.sampled_from(values), min_size=count, max_size=count), min_size=batch, max_size=batch
    ).map(lambda rows: np.array(rows).reshape(batch, count))


@st.composite
def requests(draw):
    batch, count = draw(st.integers(1, 4)), draw(st.integers(0, 12))
    return request(
        draw(matrix([*EXACT_IDS.tolist(), *[-1] * 3, 6, 2**61], batch, count)),
        draw(matrix([0.0, TINY, 1.0, 1.0, 2.0, 3.0, 7.5, 1e30, HUGE, NAN], batch, count)),
        draw(matrix([0.0, 0.0, 0.3, 0.5, 1.0, 1e-9, NAN, -1.0, 2.0], batch, 1)),
        draw(matrix([-5, 0, 1, 3, 9, 2**62], batch, 1)),
        draw(matrix([-1, 0, 8, 2**59], batch, count)),
        draw(matrix([-1, 0, 1, 2, 2**40], batch, 1)),
    )


@settings(max_examples=400, deadline=None)
@given(feed=requests(), size=st.sampled_from([1, 4, 9]), with_channels=st.booleans())
def test_the_graph_answers_as_the_definition(feed, size, with_channels):
    if not with_channels:
        feed = {name: value for name, value in feed.items() if "channel" not in name}
    expected = rerank(EXACT, EXACT_IDS, feed, size)
    assert_same(run(SESSIONS[size, with_channels], feed), expected)


def catalogue(count=500, width=16, seed=0):
    draw = np.random.default_rng(seed)
    vectors = draw.standard_normal((count, width)) * np.exp(draw.standard_normal((count, 1)))
    return vectors.astype(np.float32), draw.choice(2**60, count, replace=False), draw


def mixed(ids, draw, batch=8, count=60):
    """Rows with and without diversity and limit, some with few candidates or few places."""
    videos = np.stack([draw.choice(ids, count, replace=False) for _ in range(batch)])
    videos[1, draw.random(count) < 0.8] = -1
    return request(
        videos,
        100 * draw.random((batch, count)),
        diversity=[0, 0.3, 0, 0.9, 0, 1, 0.3, 0][:batch],
        k=[60, 40, 5, 40, 40, 30, 0, 60][:batch],
        channel_id=draw.integers(-1, 12, (batch, count)),
        channel_limit=[0, 2, 1, 0, 3, 2, 1, 0][:batch],
    )


@pytest.mark.parametrize("size", [20, 60, 100])
def test_real_vectors_are_ordered_as_by_the_definition(size):
    vectors, ids, draw = catalogue()
    feed = mixed(ids[:400], draw)
    assert_same(
        run(build(vectors[:300], ids[:300], size), feed), rerank(vectors[:300], ids[:300], feed, size)
    )


def test_rows_of_a_batch_do_not_meet():
    vectors, ids, draw = catalogue()
    feed = mixed(ids, draw)
    where = session(build(vectors, ids, 60))
    together = run(where, feed)
    for row in range(len(feed["k"])):
        alone = run(where, {name: value[row : row + 1] for name, value in feed.items()})
        assert_same(alone, [answer[row : row + 1] for answer in together])


def test_times_whose_relevance_rounds_to_the_same_keep_their_order():
    seconds = np.float32([1.5, *(0.75 + np.arange(40) * 2.0**-24), 1e-40, TINY])
    relevance = seconds / seconds[0]
    assert len(np.unique(relevance)) < len(np.unique(seconds))
    videos = np.broadcast_to(np.arange(100, 143), (2, 43))
    found, answered, _ = run(SESSIONS[9, True], request(videos, seconds, diversity=[0, 0.5]))
    by_time = np.argsort(-seconds, kind="stable")[:9]
    assert found[0].tolist() == videos[0][by_time].tolist()
    np.testing.assert_array_equal(answered[0], seconds[by_time])


def test_a_case_by_hand():
    vectors = np.float32([[1, 0], [4, 0], [0, 1], [-1, 0]])
    where = session(build(vectors, np.array([10, 20, 30, 40]), 4))

    def order(diversity, videos=(10, 20, 30, 40), seconds=(100, 90, 50, 10), **more):
        return run(where, request([videos], seconds, diversity, **more))[0][0].tolist()

    assert order(0) == [10, 20, 30, 40]
    # 20: .5 * .9 - .5 * 1 = -.05; 30: .5 * .5 - 0 = .25; 40: .5 * .1 + .5 = .55
    assert order(0.5) == [10, 40, 30, 20]
    # 20: .8 * .9 - .2 * 1 = .52; 30: .8 * .5 - 0 = .4; 40: .8 * .1 + .2 = .28
    assert order(0.2) == [10, 20, 30, 40]
    assert order(1) == [10, 40, 30, 20]
    assert order(2, [10, 50, 60], [100, 50, 10]) == [10, 50, 60, -1]  # as 1: unknown videos are equals
    assert order(0.5, seconds=0) == [10, 40, 30, 20]
    assert order(0.2, [10, 20, 30, -1], [100, 90, 50, 1e4]) == [10, 20, 30, -1]
    assert order(0, channel_id=[5, 5, -1, 5], channel_limit=1) == [10, 30, -1, -1]
    assert order(0, channel_id=[5, 5, -1, -1], channel_limit=1, k=2) == [10, 30, -1, -1]
    assert order(0.5, channel_id=[5, 6, 5, 5], channel_limit=2) == [10, 40, 20, -1]


@pytest.mark.parametrize("diversity", [0, 0.5])
def test_empty_places_hold_no_infinity(diversity):
    videos, seconds, scores = run(SESSIONS[9, True], request([[-1, 7, -1], [-1] * 3], 5, diversity))
    assert videos.tolist() == [[7, *[-1] * 8], [-1] * 9]
    assert seconds.tolist() == [[5, *[0] * 8], [0] * 9]
    assert scores.tolist() == [[2, *[0] * 8], [0] * 9]


@pytest.mark.parametrize(
    ("options", "greedy"),
    [
        ({}, False),
        ({"diversity": [NAN, -3]}, False),
        ({"channel_limit": [-1, 0]}, False),
        ({"diversity": [0, 0.1]}, True),
        ({"channel_limit": [0, 1]}, True),
    ],
)
def test_the_loop_runs_for_who_asks_for_it_only(options, greedy):
    model = build(EXACT, EXACT_IDS, 4)
    (branch,) = (node for node in model.graph.node if node.op_type == "If")
    graphs = {a.name: a.g for a in branch.attribute}
    assert [node.op_type for node in graphs["else_branch"].node] == ["TopK"]
    assert "Loop" in {node.op_type for node in graphs["then_branch"].node}
    model.graph.output.append(helper.make_tensor_value_info(branch.input[0], TensorProto.BOOL, []))
    assert run(model, request([[7, 0], [1, 2]], 1, **options))[-1] == greedy


@pytest.mark.parametrize("with_channels", [False, True])
def test_the_graph_is_what_the_oldest_triton_loads(with_channels):
    model = build(EXACT, EXACT_IDS, 4, with_channels)
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version == 10
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 20, "ai.onnx.ml": 4}
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    where = session(model)
    for values, specs in (
        (where.get_inputs(), rerank_inputs(with_channels)),
        (where.get_outputs(), rerank_outputs(4)),
    ):
        shapes = {value.name: (value.type, value.shape) for value in values}
        types = {"int64": "tensor(int64)", "float32": "tensor(float)"}
        dims = {spec.name: ["candidates" if n == -1 else n for n in spec.dims] for spec in specs}
        assert shapes == {spec.name: (types[spec.dtype], ["batch", *dims[spec.name]]) for spec in specs}


def test_only_the_direction_of_a_vector_counts():
    vectors, ids, draw = catalogue()
    stretch = np.exp2(draw.integers(-60, 60, (len(ids), 1))).astype(np.float32)
    feed = mixed(ids, draw)
    assert_same(run(build(vectors * stretch, ids, 40), feed), run(build(vectors, ids, 40), feed))


@pytest.mark.parametrize(
    ("vectors", "ids", "size", "message"),
    [
        (EXACT, EXACT_IDS, 0, "size of an answer is 0"),
        (EXACT, EXACT_IDS[:9], 4, r"\[10, 4\].*\[9\]"),
        (EXACT[:0], EXACT_IDS[:0], 4, "at least 1"),
        (EXACT.astype(np.float64), EXACT_IDS, 4, "float64 vectors"),
        (EXACT * np.float32(np.nan), EXACT_IDS, 4, "NaN or infinity"),
        (EXACT, EXACT_IDS - 1, 4, "below 0"),
        (EXACT, EXACT_IDS // 2, 4, "twice"),
    ],
)
def test_bad_input_is_named(vectors, ids, size, message):
    with pytest.raises(InputError, match=message):
        build(vectors, ids, size)


def test_what_one_file_cannot_hold_is_an_error(monkeypatch):
    monkeypatch.setattr("watchrank.export.rerank.LARGEST_FILE", 100)
    with pytest.raises(InputError, match="fewer videos"):
        build(EXACT, EXACT_IDS, 4)


def test_by_score_negative_ones_keep_their_order_and_all_is_passed_on():
    feed = request([[1, 2, 3, 4, -1]], [9, 8, 7, 6, 5], k=4)
    feed["score"] = np.array([[-3.0, 2.0, -1.0, NAN, 7.0]], np.float32)
    feed["click_probability"] = np.array([[0.1, 0.2, 0.3, 0.4, 0.5]], np.float32)
    graph = rerank_graph(
        *BY_SCORE,
        size=6,
        with_channels=True,
        settings=ExportSettings(),
        passed=("click_probability", "score"),
    )
    ids, seconds, scores, clicks, values = run(graph, feed)
    assert ids.tolist() == [[2, 4, 3, 1, -1, -1]]
    assert seconds.tolist() == [[8, 6, 7, 9, 0, 0]]
    assert scores.tolist() == [[2, 4, 3, 1, 0, 0]]
    np.testing.assert_array_equal(clicks, np.array([[0.2, 0.4, 0.3, 0.1, 0, 0]], np.float32))
    np.testing.assert_array_equal(values[0, [0, 2, 3]], [2, -1, -3])
    feed["diversity"] = np.array(
        [[1e-6]], np.float32
    )  # nearly off: what is worth less than nothing comes last
    assert set(run(graph, feed)[0][0, 2:4].tolist()) <= {1, 3, 4}
    assert run(graph, feed)[0][0, 0] == 2


def test_by_score_diversity_takes_what_is_unlike():
    feed = request([[1, 2, 3]], [0, 0, 0], diversity=0.5, k=3)
    feed["score"] = np.array([[3.0, 2.9, 1.0]], np.float32)
    graph = rerank_graph(*BY_SCORE, size=3, with_channels=False, settings=ExportSettings(), passed=("score",))
    assert run(graph, feed)[0].tolist() == [[1, 3, 2]], "2 is like 1"


BY_SCORE = (
    np.array([[1, 0], [1, 0], [0, 1], [0, 1]], np.float32),
    np.array([1, 2, 3, 4]),
)
