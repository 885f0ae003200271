import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from watchrank.config import ExportSettings
from watchrank.errors import DeploymentError, ParityError
from watchrank.export import video_features
from watchrank.export.onnx import export_onnx
from watchrank.export.parity import check_parity
from watchrank.export.recommend import ReleaseGraphs
from watchrank.export.release import ENDPOINTS, refresh_release
from watchrank.feature_store import materialise, online_video_features
from watchrank.models.lookup import IdEmbedding, Vocabulary
from watchrank.releases import checksums, next_release, release_numbers, verify
from watchrank.schema import RANKING_INPUTS, RANKING_OUTPUTS, RECOMMEND_INPUTS, Tensor
from watchrank.storage import locked


def test_the_release_is_numbered_whole_and_checksummed(released, trained):
    manifest = json.loads((released / "manifest.json").read_text())
    files = checksums(released)
    assert files.pop("manifest.json")
    assert manifest["files"] == files
    models = ("candidate_generation", "video_features", "ranking", "rerank")
    wanted = {f"{model}/{name}" for model in models for name in ("model.onnx", "config.pbtxt")}
    kept = {
        f"training/{model}/{name}"
        for model in ("ranking", "candidate_generation")
        for name in ("config.json", "weights.safetensors", "learning_curve.json")
    }
    assert files.keys() == wanted | kept | {"recommend/config.pbtxt", "golden.json", "popular.json"}
    assert manifest["release"] == int(released.name)
    assert manifest["release"] in release_numbers(trained.place.releases)
    for differences in manifest["parity"].values():
        differences.pop("recall", None)
        assert len(differences) >= 10
        assert max(differences.values()) <= ExportSettings().tolerance


@pytest.mark.parametrize("model", ["candidate_generation", "video_features", "ranking", "rerank"])
def test_the_graphs_are_what_the_oldest_triton_loads(released, model):
    graph = onnx.load(released / model / "model.onnx")
    assert graph.ir_version == 10
    assert {entry.domain: entry.version for entry in graph.opset_import} == {"": 20, "ai.onnx.ml": 4}
    assert not any(tensor.external_data for tensor in graph.graph.initializer)


def test_golden_requests_are_what_the_graphs_answer(released):
    golden = json.loads((released / "golden.json").read_text())
    graphs = ReleaseGraphs(released)
    assert {request["model"] for request in golden["requests"]} == set(ENDPOINTS)
    kinds = {spec.name: spec.dtype for spec in (*RECOMMEND_INPUTS, *RANKING_INPUTS)}
    for request in golden["requests"]:
        inputs = {name: np.array(value, kinds[name]) for name, value in request["inputs"].items()}
        answer = graphs.run(request["model"], inputs)
        for name, expected in request["outputs"].items():
            np.testing.assert_allclose(answer[name], expected, rtol=golden["tolerance"])
    assert request["outputs"]["release"] == [[int(released.name)]] * len(inputs["k"])


def test_golden_answers_have_no_near_ties(released):
    (request,) = (
        request
        for request in json.loads((released / "golden.json").read_text())["requests"]
        if request["model"] == "recommend"
    )
    seconds = np.array(request["outputs"]["expected_watch_time"])[:, :10]
    assert (-np.diff(seconds, axis=1) > 1e-4 * seconds[:, 1:]).all()


def test_a_refreshed_release_has_new_features_of_videos_and_the_same_models(released, trained, monkeypatch):
    features = video_features.catalogue_features

    def counted_more(store, videos, at):
        found = features(store, videos, at)
        return found | {"video_impressions_7d": found["video_impressions_7d"] + 5}

    monkeypatch.setattr(video_features, "catalogue_features", counted_more)
    before = checksums(released)
    releases = trained.place.releases
    fresh = refresh_release(released, trained.store, releases, ExportSettings())
    assert int(fresh.name) > int(released.name)
    assert checksums(released) == before
    assert verify(fresh)["refreshed_from"] == int(released.name)
    old, new = (json.loads((folder / "manifest.json").read_text())["made_of"] for folder in (released, fresh))
    assert {part for part in old if old[part] != new[part]} == {"video_features"}
    changed = {name for name, value in checksums(fresh).items() if before.get(name) != value}
    assert changed == {"video_features/model.onnx", "rerank/model.onnx", "golden.json", "manifest.json"}
    videos = video_features.videos_of(fresh / "video_features" / "model.onnx")[None, :20]
    old, new = (
        ReleaseGraphs(folder).run("video_features", {"video_ids": videos}) for folder in (released, fresh)
    )
    np.testing.assert_array_equal(new["video_impressions_7d"], old["video_impressions_7d"] + 5)
    np.testing.assert_array_equal(new["channel_id"], old["channel_id"])


def test_a_damaged_release_is_found_out(released, tmp_path):
    copy = shutil.copytree(released, tmp_path / released.name)
    assert verify(copy)["release"] == int(released.name)
    with (copy / "rerank" / "model.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(DeploymentError, match=r"rerank/model.onnx is missing or not the file"):
        verify(copy)


def test_a_file_that_the_manifest_does_not_name_is_found_out(released, tmp_path):
    copy = shutil.copytree(released, tmp_path / released.name)
    (copy / "ranking" / "more.onnx").write_bytes(b"")
    with pytest.raises(DeploymentError, match=r"ranking/more.onnx"):
        verify(copy)


def test_two_exports_at_once_get_two_numbers(tmp_path):
    def make(_):
        with locked(tmp_path), next_release(tmp_path) as (number, fresh):
            time.sleep(0.05)
            (fresh / "manifest.json").write_text("{}")
        return number

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(make, range(4))) == [1, 2, 3, 4]
    assert release_numbers(tmp_path) == [1, 2, 3, 4]


def test_the_features_of_videos_are_those_of_the_store_and_defaults_for_unknown_ones(released, trained):
    graph = released / "video_features" / "model.onnx"
    videos = video_features.videos_of(graph)
    asked = np.array([[videos[3], -1, videos[0]], [2**62, videos[5], videos[3]]])
    answer = ReleaseGraphs(released).run("video_features", {"video_ids": asked})
    materialise(trained.store, datetime.now(UTC))
    stored = online_video_features(trained.store, asked.ravel().tolist())
    assert len(answer) > 5
    for name, values in answer.items():
        np.testing.assert_array_equal(values, stored[name].reshape(2, 3))


class Doubled(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.embedding = IdEmbedding(Vocabulary(torch.tensor([2, 5, 2**60])), 3)
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x):
        return (self.embedding(x["video_id"]).sum(-1) * self.factor).exp()


VIDEO = (Tensor(name="video_id", dtype="int64", dims=(-1,), description=""),)


def test_lookup_is_exported_as_one_hash_table(tmp_path):
    module = Doubled(2.0).eval()
    export_onnx(module, VIDEO, RANKING_OUTPUTS, tmp_path / "m.onnx", ExportSettings())
    cases = {"ids": {"video_id": np.array([[2, 5], [2**60, 3], [-1, 2**62]])}}
    parity = check_parity(module, tmp_path / "m.onnx", cases, tolerance=1e-6, maxima=[1e9])
    assert parity.differences["ids"] <= 1e-6
    assert [n.op_type for n in onnx.load(tmp_path / "m.onnx").graph.node].count("LabelEncoder") == 1


def test_parity_fails_on_another_model_and_on_an_answer_out_of_bounds(tmp_path):
    module = Doubled(2.0).eval()
    export_onnx(module, VIDEO, RANKING_OUTPUTS, tmp_path / "m.onnx", ExportSettings())
    cases = {"ids": {"video_id": np.array([[2, 5]])}}
    with torch.no_grad():
        module.factor.mul_(1.01)
    with pytest.raises(ParityError, match=r"differs from the trained model by .* on 'ids'"):
        check_parity(module, tmp_path / "m.onnx", cases, tolerance=1e-4, maxima=[1e9])
    with pytest.raises(ParityError, match="not finite or above"):
        check_parity(module, tmp_path / "m.onnx", cases, tolerance=1, maxima=[1e-9])
