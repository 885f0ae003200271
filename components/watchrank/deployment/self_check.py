"""Does this server compute? Known numbers through a known graph.

The local server's Python backend reads wrong inputs, and says nothing, when its environment holds
numpy 2; no readiness probe sees that.
"""

import shutil
from pathlib import Path

import numpy as np
import onnx
import tritonclient.grpc as triton
from onnx import TensorProto, helper

from watchrank.deployment.model_repository import CONFIG, GRAPH, VERSION
from watchrank.export.triton_config import triton_config
from watchrank.schema import Tensor

MODEL = "watchrank_self_check"
"""Reserved name; the model lives in a repository of its own."""

_IDS = np.array([[2**60 - 1, -1, 0]], dtype=np.int64)
_SECONDS = np.array([[0.1, -2.5, 3e8]], dtype=np.float32)
_INPUTS = (
    Tensor(name="ids", dtype="int64", dims=(3,), description="any"),
    Tensor(name="seconds", dtype="float32", dims=(3,), description="any"),
)
_OUTPUTS = (
    Tensor(name="next_ids", dtype="int64", dims=(3,), description="ids + 1"),
    Tensor(name="double_seconds", dtype="float32", dims=(3,), description="seconds * 2"),
)


def write(repository: Path) -> None:
    """Write the model `next_ids = ids + 1, double_seconds = seconds * 2` into `repository`."""
    folder = repository / MODEL
    (folder / VERSION).mkdir(parents=True, exist_ok=True)
    onnx.save(_graph(), folder / VERSION / GRAPH)
    config = triton_config(MODEL, _INPUTS, _OUTPUTS, max_batch_size=1)
    (folder / CONFIG).write_text(config, encoding="utf-8")


def remove(repository: Path) -> None:
    """Remove the model; the empty repository stays, as the server looks into it at every load."""
    shutil.rmtree(repository / MODEL, ignore_errors=True)


def computes_rightly(
    client: triton.InferenceServerClient, timeout_seconds: float, headers: dict[str, str] | None
) -> bool:
    """Load the model, send it known numbers, unload it; return whether every answer is right.

    Args:
        client: of the server.
        timeout_seconds: of each call.
        headers: what the server's administration asks for.

    Raises:
        InferenceServerException: the server refused one of the calls.
    """
    client.load_model(MODEL, headers=headers, client_timeout=timeout_seconds)
    inputs = [_input("ids", "INT64", _IDS), _input("seconds", "FP32", _SECONDS)]
    answer = client.infer(MODEL, inputs, client_timeout=timeout_seconds)
    client.unload_model(MODEL, headers=headers, client_timeout=timeout_seconds)
    return _holds(answer, "next_ids", _IDS + 1) and _holds(answer, "double_seconds", _SECONDS * 2)


def _holds(answer: triton.InferResult, name: str, expected: np.ndarray) -> bool:
    try:
        return np.array_equal(answer.as_numpy(name), expected)
    except ValueError:  # fewer bytes than the shape says
        return False


def _graph() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Add", ["ids", "one"], ["next_ids"]),
        helper.make_node("Add", ["seconds", "seconds"], ["double_seconds"]),
    ]
    one = helper.make_tensor("one", TensorProto.INT64, [], [1])
    inputs = [_value("ids", TensorProto.INT64), _value("seconds", TensorProto.FLOAT)]
    outputs = [_value("next_ids", TensorProto.INT64), _value("double_seconds", TensorProto.FLOAT)]
    graph = helper.make_graph(nodes, MODEL, inputs, outputs, [one])
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])


def _value(name: str, kind: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, ["batch", 3])


def _input(name: str, datatype: str, array: np.ndarray) -> triton.InferInput:
    tensor = triton.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    return tensor
