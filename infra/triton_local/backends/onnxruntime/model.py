"""The backend `onnxruntime` for a Triton server that comes without it, as a Python-based backend.

It serves every model whose configuration says `backend: "onnxruntime"`: `<model>/<version>/model.onnx`
in one ONNX Runtime session an instance, on the CPU. What the C++ backend of NVIDIA's container refuses
to load (other inputs, dtypes or dims than the configuration declares) is refused here too.
"""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

DATA_TYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
    "tensor(string)": "TYPE_STRING",
}


class TritonPythonModel:
    """One instance of one version of a model; the class name is Triton's."""

    def initialize(self, args):
        """Load the graph of this version and hold it against the configuration."""
        config = json.loads(args["model_config"])
        file = config.get("default_model_filename") or "model.onnx"
        path = Path(args["model_repository"]) / args["model_version"] / file
        self._session = ort.InferenceSession(path, _options(config), providers=["CPUExecutionProvider"])
        batched = config["max_batch_size"] > 0
        _check("input", config["input"], self._session.get_inputs(), batched)
        _check("output", config["output"], self._session.get_outputs(), batched)
        self._inputs = [tensor["name"] for tensor in config["input"]]
        self._outputs = [tensor["name"] for tensor in config["output"]]

    def execute(self, requests):
        """Answer a list of requests: those of equal shapes in one run of the graph."""
        responses = [None] * len(requests)
        groups = defaultdict(list)
        for index, request in enumerate(requests):
            try:
                feed = self._feed(request)
            except UnicodeDecodeError as error:
                responses[index] = _refusal(f"a string is not UTF-8: {error}")
                continue
            groups[tuple(array.shape[1:] for array in feed.values())].append((index, feed))
        for group in groups.values():
            indices, feeds = zip(*group, strict=True)
            for index, response in zip(indices, self._answer(feeds), strict=True):
                responses[index] = response
        return responses

    def _feed(self, request):
        arrays = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        for name, array in arrays.items():
            if array.dtype == np.object_:
                arrays[name] = _decoded(array)
        return {name: arrays[name] for name in self._inputs}

    def _answer(self, feeds):
        """Return a response for each of `feeds`; when their common run fails, each runs alone."""
        try:
            batches = self._run(feeds)
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors have no common base; all are answered
            if len(feeds) > 1:
                return [self._answer([feed])[0] for feed in feeds]
            return [_refusal(str(error))]
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor(name, array) for name, array in zip(self._outputs, arrays, strict=True)]
            )
            for arrays in batches
        ]

    def _run(self, feeds):
        """Run the graph once; return for each of `feeds` its arrays, in the order of the outputs."""
        if len(feeds) == 1:
            return [self._session.run(self._outputs, feeds[0])]
        joined = {name: np.concatenate([feed[name] for feed in feeds]) for name in self._inputs}
        ends = np.cumsum([len(feed[self._inputs[0]]) for feed in feeds])
        answers = self._session.run(self._outputs, joined)
        for name, answer in zip(self._outputs, answers, strict=True):
            if len(answer) != ends[-1]:
                raise ValueError(f"output {name!r} has {len(answer)} rows for a batch of {ends[-1]}")
        return list(zip(*(np.split(answer, ends[:-1]) for answer in answers), strict=True))


def _options(config):
    """Return session options; the parameter has the C++ backend's name, and 0 leaves the choice to it."""
    options = ort.SessionOptions()
    threads = config.get("parameters", {}).get("intra_op_thread_count", {}).get("string_value", "0")
    options.intra_op_num_threads = int(threads)
    return options


def _check(kind, declared, actual, batched):
    """Refuse a configuration that the graph does not fit, by the rules of the C++ backend."""
    nodes = {node.name: node for node in actual}
    names = [tensor["name"] for tensor in declared]
    if not set(names) <= set(nodes) or (kind == "input" and len(names) != len(nodes)):
        raise pb_utils.TritonModelException(
            f"config.pbtxt declares the {kind}s {sorted(names)}, model.onnx has {sorted(nodes)}"
        )
    for tensor in declared:
        node = nodes[tensor["name"]]
        dims = [-1] * batched + [int(size) for size in tensor["dims"]]
        shape = [size if isinstance(size, int) else -1 for size in node.shape]
        if DATA_TYPES.get(node.type) != tensor["data_type"] or not _fits(kind, dims, shape, batched):
            raise pb_utils.TritonModelException(
                f"config.pbtxt declares {kind} {node.name!r} as {tensor['data_type']} {dims}, "
                f"model.onnx has {node.type} {shape}"
            )


def _fits(kind, dims, shape, batched):
    if len(dims) != len(shape) or (batched and shape[0] != -1):
        return False
    return all(dim == size or (kind == "input" and size == -1) for dim, size in zip(dims, shape, strict=True))


def _decoded(array):
    """Return an array of bytes objects as one of str, which is what ONNX Runtime takes."""
    texts = np.empty(array.shape, dtype=np.object_)
    texts.ravel()[:] = [value.decode() for value in array.ravel()]
    return texts


def _refusal(reason):
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(reason, pb_utils.TritonError.INVALID_ARG))
