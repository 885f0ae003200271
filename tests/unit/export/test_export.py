import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

from watchrank.config import ExportSettings
from watchrank.errors import ParityError
from watchrank.export.onnx import export_onnx
from watchrank.export.parity import check_parity
from watchrank.export.release import export_release
from watchrank.models.lookup import IdEmbedding, Vocabulary
from watchrank.releases import checksums, release_numbers
from watchrank.schema import RANKING_OUTPUTS, Tensor


@pytest.fixture(scope="module")
def release(trained):
    return export_release(
        trained.place.model,
        trained.place.dataset,
        {"models": {}},
        trained.place.releases,
        trained.config.export,
    )


def test_the_release_is_numbered_whole_and_checksummed(release, trained):
    manifest = json.loads((release / "manifest.json").read_text())
    files = checksums(release)
    assert files.pop("manifest.json")
    assert manifest["files"] == files
    assert {"ranking/model.onnx", "ranking/config.pbtxt", "ranking/golden.json", "popular.json"} <= set(files)
    assert manifest["release"] in release_numbers(trained.place.releases)
    assert len(manifest["parity"]) >= 10
    assert max(manifest["parity"].values()) <= ExportSettings().tolerance


def test_the_graph_is_what_the_oldest_triton_loads(release):
    model = onnx.load(release / "ranking" / "model.onnx")
    assert model.ir_version == 10
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 20, "ai.onnx.ml": 4}
    assert [value.name for value in model.graph.output] == ["expected_watch_time"]
    assert not any(tensor.external_data for tensor in model.graph.initializer)


def test_golden_requests_are_what_the_graph_answers(release):
    golden = json.loads((release / "ranking" / "golden.json").read_text())
    session = ort.InferenceSession(release / "ranking" / "model.onnx")
    kinds = {"tensor(int64)": np.int64, "tensor(float)": np.float32}
    for request in golden["requests"]:
        inputs = {
            i.name: np.array(request["inputs"][i.name], dtype=kinds[i.type]) for i in session.get_inputs()
        }
        answer = session.run(None, inputs)[0]
        np.testing.assert_allclose(
            answer, request["outputs"]["expected_watch_time"], rtol=golden["tolerance"]
        )
        assert answer.shape[1] > 1


def test_the_next_release_has_the_next_number_and_leaves_the_first_alone(release, trained):
    before = checksums(release)
    second = export_release(
        trained.place.model,
        trained.place.dataset,
        {"models": {}},
        trained.place.releases,
        trained.config.export,
    )
    assert int(second.name) == int(release.name) + 1
    assert checksums(release) == before


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
    export_onnx(module, VIDEO, RANKING_OUTPUTS[0], tmp_path / "m.onnx", ExportSettings())
    cases = {"ids": {"video_id": np.array([[2, 5], [2**60, 3], [-1, 2**62]])}}
    parity = check_parity(module, tmp_path / "m.onnx", cases, tolerance=1e-6, maximum=1e9)
    assert parity.differences["ids"] <= 1e-6
    assert [n.op_type for n in onnx.load(tmp_path / "m.onnx").graph.node].count("LabelEncoder") == 1


def test_parity_fails_on_another_model_and_on_an_answer_out_of_bounds(tmp_path):
    module = Doubled(2.0).eval()
    export_onnx(module, VIDEO, RANKING_OUTPUTS[0], tmp_path / "m.onnx", ExportSettings())
    cases = {"ids": {"video_id": np.array([[2, 5]])}}
    with torch.no_grad():
        module.factor.mul_(1.01)
    with pytest.raises(ParityError, match=r"differs from the trained model by .* on 'ids'"):
        check_parity(module, tmp_path / "m.onnx", cases, tolerance=1e-4, maximum=1e9)
    with pytest.raises(ParityError, match="not finite or above"):
        check_parity(module, tmp_path / "m.onnx", cases, tolerance=1, maximum=1e-9)
