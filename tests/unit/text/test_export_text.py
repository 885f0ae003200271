import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from watchrank.config import ExportSettings
from watchrank.errors import ParityError
from watchrank.export import text as export
from watchrank.models.lookup import top_ids
from watchrank.models.text.bag_of_words import BagOfWords
from watchrank.models.text.cnn import Cnn
from watchrank.models.text.lstm import Lstm
from watchrank.models.text.side_fields import SideFields
from watchrank.models.text.tokens import ngram_ids
from watchrank.models.text.two_towers import QUERY, TITLE, DocumentTower, QueryTower, TextMatch
from watchrank.schema import Tensor

TEXTS = ["good morning to the world", "怎么 fix 自行车 tyre", "short", "", None, "of quagga and zebra"]
FIELDS = [Tensor(name="channel_id", dtype="int64", dims=(1,), description="the channel")]
SETTINGS = ExportSettings(tolerance=1e-5)


def rows():
    ids = ngram_ids(TEXTS, max_words=12, max_ngrams=6)
    return {QUERY: ids, TITLE: ids[::-1].copy(), "channel_id": np.array([[1], [2], [-1], [9], [1], [2]])}


def model(kind) -> TextMatch:
    torch.manual_seed(0)
    ids = rows()[QUERY][:3].ravel()
    text = kind(top_ids(ids, np.ones(len(ids)), 1_000))
    if kind is Lstm:
        torch.nn.init.normal_(text.lstm.peepholes)
    fields = SideFields({"channel_id": torch.tensor([1, 2])})
    return TextMatch(QueryTower(text), DocumentTower(text, fields)).eval()


@pytest.mark.parametrize("kind", [BagOfWords, Cnn, Lstm])
def test_both_graphs_answer_as_the_model_does_at_any_length(kind, tmp_path):
    made = model(kind)
    parity = export.export_text(made, tmp_path / "text", rows(), FIELDS, SETTINGS)
    assert len(parity) == 22
    assert max(parity.values()) <= 1e-5
    x = ngram_ids([" ".join(["good world"] * 40), "short"], max_words=100, max_ngrams=3)
    session = ort.InferenceSession(tmp_path / "text" / "query.onnx")
    expected = made.query({QUERY: torch.from_numpy(x)}).detach().numpy()
    np.testing.assert_allclose(session.run(None, {QUERY: x})[0], expected, atol=1e-6)


def test_the_lstm_is_one_operator_with_peepholes_at_the_opset_and_ir_version_of_the_settings(tmp_path):
    export.export_text(model(Lstm), tmp_path / "text", rows(), FIELDS, SETTINGS)
    graph = onnx.load(tmp_path / "text" / "document.onnx")
    (node,) = [node for node in graph.graph.node if node.op_type == "LSTM"]
    assert node.input[7], "P is there"
    assert not {"Loop", "Scan"} & {node.op_type for node in graph.graph.node}
    assert (graph.opset_import[0].version, graph.ir_version) == (20, 10)
    assert [axis.dim_param for axis in graph.graph.input[0].type.tensor_type.shape.dim] == [
        "batch",
        "words",
        "ngrams",
    ]


def test_a_graph_that_answers_otherwise_is_not_kept(tmp_path, monkeypatch):
    made = model(Lstm)
    write = export.export_onnx

    def other(tower, *rest):
        with torch.no_grad():
            made.query.text.lstm.peepholes += 0.01
            write(tower, *rest)
            made.query.text.lstm.peepholes -= 0.01

    monkeypatch.setattr(export, "export_onnx", other)
    with pytest.raises(ParityError, match="differs from the trained model"):
        export.export_text(made, tmp_path / "text", rows(), FIELDS, SETTINGS)
    assert not (tmp_path / "text").exists()
