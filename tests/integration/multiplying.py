"""Small releases whose model multiplies by the release's number: what a server answers tells which serves."""

import json
from pathlib import Path

from onnx import TensorProto, helper

from watchrank.export.triton_config import triton_config
from watchrank.releases import checksums
from watchrank.schema import Tensor

NUMBER = Tensor(name="number", dtype="float32", dims=(1,), description="any")
ANSWER = Tensor(name="answer", dtype="float32", dims=(1,), description="any")
METRICS = {
    "ranking": {"models": {"ranker": {"per_user_loss": 0.1}}},
    "candidate_generation": {"models": {"tower": {"recall@100": 0.3}}},
}


def make_release(
    folder: Path, number: int, *, golden: float | None = None, endpoint: str = "multiply"
) -> Path:
    """Write a release with one endpoint; `golden` says that its model multiplies by something else."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["number", "factor"], ["answer"])],
        "multiply",
        [helper.make_tensor_value_info("number", TensorProto.FLOAT, ["batch", 1])],
        [helper.make_tensor_value_info("answer", TensorProto.FLOAT, ["batch", 1])],
        [helper.make_tensor("factor", TensorProto.FLOAT, [], [number])],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    (folder / endpoint).mkdir(parents=True)
    (folder / endpoint / "model.onnx").write_bytes(model.SerializeToString())
    config = triton_config(endpoint, [NUMBER], [ANSWER], max_batch_size=8)
    (folder / endpoint / "config.pbtxt").write_text(config)
    outputs = {"answer": [[2.0 * (golden or number)]]}
    request = {"model": endpoint, "inputs": {"number": [[2.0]]}, "outputs": outputs}
    (folder / "golden.json").write_text(json.dumps({"tolerance": 1e-4, "requests": [request]}))
    manifest = {
        "release": number,
        "created": "today",
        "endpoints": [endpoint],
        "data": {"test": {"until": "yesterday"}},
        "metrics": METRICS,
        "files": checksums(folder),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder
