import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, compose, helper, numpy_helper

from watchrank.errors import InputError
from watchrank.export.index import EXACT_LIMIT, build_index
from watchrank.export.inverted_file import build_inverted_file

VARIANTS = ["exact", "inverted_file"]
ALL = 10**9
NONE = np.iinfo(np.int64).min


def catalogue(count, width=16, seed=0):
    """Vectors around 30 centres, of unequal length; the 60-bit ids are in no order."""
    draw = np.random.default_rng(seed)
    centres = draw.standard_normal((30, width))
    vectors = centres[draw.integers(30, size=count)] + 0.4 * draw.standard_normal((count, width))
    vectors *= np.exp(0.3 * draw.standard_normal((count, 1)))
    ids = draw.choice(2**60 - 1, count, replace=False)
    users = centres[draw.integers(30, size=40)] + 0.4 * draw.standard_normal((40, width))
    return vectors.astype(np.float32), ids, users.astype(np.float32)


def session(model):
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def search(model, users, watched=None, excluded=None):
    """Return video ids [B, K] and scores [B, K]; watched and excluded are lists of ids a user."""
    where = model if isinstance(model, ort.InferenceSession) else session(model)
    watched = padded(watched or [[]] * len(users), 50)
    longest = max(map(len, excluded)) if excluded else 0
    excluded = padded(excluded or [[]] * len(users), longest)
    feed = {"user_vector": users, "watched_video_ids": watched, "excluded_video_ids": excluded}
    return where.run(["video_ids", "scores"], feed)


def padded(lists, length):
    return np.array([[*ids, *[-1] * (length - len(ids))] for ids in lists], np.int64).reshape(
        len(lists), length
    )


def brute_force(vectors, ids, users, k, banned=None):
    answers = []
    for place, user in enumerate(users):
        scores = vectors.astype(np.float64) @ user
        left = ~np.isin(ids, banned[place]) if banned else np.ones(len(ids), bool)
        order = np.argsort(-scores[left])[:k]
        answers.append((ids[left][order], scores[left][order]))
    return np.array([a for a, _ in answers]), np.array([b for _, b in answers])


def recall(found, true):
    return np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, true, strict=True)])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("count", "k"), [(1_000, 20), (257, 257)])
def test_with_all_lists_the_answer_is_that_of_brute_force(variant, count, k):
    vectors, ids, users = catalogue(count)
    found, scores = search(build_index(vectors, ids, k=k, variant=variant, probes=ALL), users)
    true, true_scores = brute_force(vectors, ids, users, k)
    np.testing.assert_array_equal(found, true)
    np.testing.assert_allclose(scores, true_scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("half", [False, True])
def test_a_few_lists_find_nearly_all(half):
    vectors, ids, users = catalogue(6_000)
    model = build_index(vectors, ids, k=50, variant="inverted_file", lists=120, probes=12, half=half)
    true, _ = brute_force(vectors, ids, users, 50)
    found, scores = search(model, users)
    assert recall(found, true) >= 0.95
    by_id = dict(zip(ids.tolist(), vectors, strict=True))
    again = [[by_id[video] @ user for video in row] for row, user in zip(found.tolist(), users, strict=True)]
    np.testing.assert_allclose(scores, again, rtol=2e-3 if half else 1e-4, atol=2e-2 if half else 1e-4)


def test_more_lists_find_more_than_one_does():
    vectors, ids, users = catalogue(6_000)
    true, _ = brute_force(vectors, ids, users, 50)
    one, many = (
        recall(
            search(build_index(vectors, ids, k=50, variant="inverted_file", lists=120, probes=p), users)[0],
            true,
        )
        for p in (1, 20)
    )
    assert one < 0.8 < many


@pytest.mark.parametrize("variant", VARIANTS)
def test_watched_and_excluded_never_come_back(variant):
    vectors, ids, users = catalogue(1_500)
    index = session(build_index(vectors, ids, k=30, variant=variant, probes=ALL))
    before, _ = search(index, users)
    watched = [[*row[:20], *row[:5], 12345] for row in before.tolist()]
    excluded = [row[20:27] * 2 + [NONE, 2**60] for row in before.tolist()]
    banned = [a + b for a, b in zip(watched, excluded, strict=True)]
    found, scores = search(index, users, watched, excluded)
    true, _ = brute_force(vectors, ids, users, 30, banned)
    np.testing.assert_array_equal(found, true)
    assert (np.diff(scores) <= 0).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_user_has_exclusions_of_its_own(variant):
    vectors, ids, users = catalogue(1_500)
    index = session(build_index(vectors, ids, k=10, variant=variant, probes=ALL))
    same = np.repeat(users[:1], 2, axis=0)
    best = search(index, same)[0][0].tolist()
    found, _ = search(index, same, excluded=[best, []])
    assert not set(found[0].tolist()) & set(best)
    assert found[1].tolist() == best


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("count", [1, 2, 60])
def test_where_fewer_are_left_the_rest_is_empty(variant, count):
    vectors, ids, users = catalogue(count)
    excluded = [ids[: count // 2].tolist()] * len(users)
    watched = [list(range(50))] * len(users)
    found, scores = search(build_index(vectors, ids, k=100, variant=variant), users, watched, excluded)
    left = count - count // 2
    assert found.shape == scores.shape == (len(users), 100)
    assert (found[:, left:] == -1).all()
    assert np.isneginf(scores[:, left:]).all()
    true, _ = brute_force(vectors, ids, users, left, excluded)
    np.testing.assert_array_equal(found[:, :left], true)


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_does_not_crowd_out_videos_of_negative_score(variant):
    vectors, ids, _ = catalogue(97)
    vectors = np.abs(vectors)
    users = -np.ones((3, 16), np.float32)
    found, scores = search(build_index(vectors, ids, k=20, variant=variant, lists=8, probes=ALL), users)
    np.testing.assert_array_equal(found, brute_force(vectors, ids, users, 20)[0])
    assert (scores < 0).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_of_a_batch_do_not_meet(variant):
    vectors, ids, users = catalogue(2_000)
    index = session(build_index(vectors, ids, k=25, variant=variant, lists=60, probes=10))
    users[3] *= 1e4
    excluded = [[video] for video in ids[:16].tolist()]
    found, scores = search(index, users[:16], excluded=excluded)
    for place in range(16):
        one, one_scores = search(index, users[place : place + 1], excluded=[excluded[place]])
        np.testing.assert_array_equal(one[0], found[place])
        np.testing.assert_allclose(one_scores[0], scores[place], rtol=1e-5, atol=1e-5)


def test_the_length_of_a_users_vector_does_not_change_the_lists():
    vectors, ids, users = catalogue(2_000)
    index = session(build_index(vectors, ids, k=25, variant="inverted_file", lists=60, probes=3))
    np.testing.assert_array_equal(search(index, users)[0], search(index, users * np.float32(1024))[0])


@pytest.mark.parametrize("variant", VARIANTS)
def test_equal_and_zero_vectors_come_back_once_each(variant):
    ids = np.arange(300) * 7
    for vectors in (np.ones((300, 4), np.float32), np.zeros((300, 4), np.float32)):
        found, _ = search(build_index(vectors, ids, k=300, variant=variant, probes=ALL), vectors[:2])
        np.testing.assert_array_equal(np.sort(found), [ids, ids])


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_graph_is_what_the_oldest_triton_loads(variant):
    vectors, ids, _ = catalogue(500)
    model = build_index(vectors, ids, k=10, variant=variant)
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version == 10
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 20}
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert {node.domain for node in model.graph.node} == {""}


def test_a_tower_can_be_put_in_front():
    vectors, ids, users = catalogue(500)
    index = build_index(vectors, ids, k=10)
    turn = np.random.default_rng(1).standard_normal((3, 16)).astype(np.float32)
    tower = helper.make_graph(
        [helper.make_node("MatMul", ["features", "weight"], ["user_vector"])],
        "tower",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("user_vector", TensorProto.FLOAT, ["batch", 16])],
        [numpy_helper.from_array(turn, "weight")],
    )
    tower = helper.make_model(tower, opset_imports=index.opset_import, ir_version=10)
    merged = session(compose.merge_models(tower, index, [("user_vector", "user_vector")]))
    nothing = {"watched_video_ids": padded([[]], 50), "excluded_video_ids": padded([[]], 0)}
    found = merged.run(["video_ids"], {"features": users[:1, :3], **nothing})[0]
    np.testing.assert_array_equal(found, search(index, users[:1, :3] @ turn)[0])


def test_auto_is_exact_for_a_small_catalogue_only(monkeypatch):
    vectors, ids, _ = catalogue(500)
    assert len(ids) < EXACT_LIMIT
    assert "index/centroids" not in names(build_index(vectors, ids, k=10))
    monkeypatch.setattr("watchrank.export.index.EXACT_LIMIT", 499)
    assert "index/centroids" in names(build_index(vectors, ids, k=10))


def names(model):
    return {tensor.name for tensor in model.graph.initializer}


def test_every_video_is_in_one_list_and_padding_is_small():
    vectors, ids, _ = catalogue(6_000)
    index = build_inverted_file(vectors, ids, lists=100, least_places=1)
    held = index.ids[index.ids >= 0]
    np.testing.assert_array_equal(np.sort(held), np.sort(ids))
    assert index.ids.size <= 1.4 * len(ids)
    np.testing.assert_array_equal(np.isneginf(index.vectors[:, -1]), index.ids == -1)


VECTORS, IDS, _ = catalogue(10)
NAN = np.where(np.arange(10)[:, None] == 3, np.float32(np.nan), VECTORS)


@pytest.mark.parametrize(
    ("vectors", "ids", "options", "message"),
    [
        (VECTORS, IDS[:9], {}, r"\[10, 16\].*\[9\]"),
        (VECTORS[0], IDS, {}, r"shape \[16\]"),
        (VECTORS[:0], IDS[:0], {}, "at least 1"),
        (VECTORS, IDS[[0, *range(9)]], {}, f"1 ids more than once, among them {IDS[0]}"),
        (VECTORS, IDS - 2**60, {}, "-1 is padding"),
        (NAN, IDS, {}, f"of 1 videos hold NaN.*{IDS[3]}"),
        (np.full_like(VECTORS, np.inf), IDS, {}, "infinity"),
        (VECTORS.astype(np.float64), IDS, {}, "float64 vectors"),
        (VECTORS, IDS, {"k": 0}, "k is 0"),
        (VECTORS, IDS, {"probes": 0}, "probes is 0"),
        (VECTORS, IDS, {"variant": "fast"}, "'fast': choose from auto, exact"),
        (VECTORS * np.float32(1e6), IDS, {"half": True, "variant": "inverted_file"}, "65,504"),
    ],
)
def test_bad_input_is_named(vectors, ids, options, message):
    with pytest.raises(InputError, match=message):
        build_index(vectors, ids, **({"k": 5} | options))


def test_what_one_file_cannot_hold_is_an_error(monkeypatch):
    monkeypatch.setattr("watchrank.export.index.LARGEST_FILE", 500)
    with pytest.raises(InputError, match="half=True"):
        build_index(VECTORS, IDS, k=5)
