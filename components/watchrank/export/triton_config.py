"""The configuration of a model in Triton's repository, generated from the schema.

Source: the ModelConfig message of Triton 24.10; what its C++ ONNX Runtime backend checks at load is
that the inputs are exactly the graph's, and that dtypes and dims fit them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from watchrank.schema import Tensor

_DATA_TYPES = {"int64": "TYPE_INT64", "float32": "TYPE_FP32"}

_TEMPLATE = """\
name: "{model}"
backend: "onnxruntime"
max_batch_size: {max_batch_size}
{inputs}
{outputs}
version_policy {{ latest {{ num_versions: 1 }} }}
instance_group [ {{ kind: KIND_AUTO count: 1 }} ]
dynamic_batching {{ max_queue_delay_microseconds: {max_queue_delay_microseconds} }}
parameters {{ key: "intra_op_thread_count" value {{ string_value: "{intra_op_threads}" }} }}
"""

_ENSEMBLE = """\
name: "{model}"
platform: "ensemble"
max_batch_size: {max_batch_size}
{inputs}
{outputs}
ensemble_scheduling {{
{steps}
}}
"""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One model of an ensemble: the ensemble's tensor for each of the model's inputs and outputs."""

    model: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


def ensemble_config(
    model: str,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    steps: Sequence[Step],
    *,
    max_batch_size: int,
) -> str:
    """Return the text of `config.pbtxt` for models that run one after another inside the server."""
    return _ENSEMBLE.format(
        model=model,
        max_batch_size=max_batch_size,
        inputs="\n".join(_declaration("input", tensor) for tensor in inputs),
        outputs="\n".join(_declaration("output", tensor) for tensor in outputs),
        steps="\n".join(map(_step, steps)),
    )


def triton_config(
    model: str,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    *,
    max_batch_size: int,
    max_queue_delay_microseconds: int = 0,
    intra_op_threads: int = 1,
) -> str:
    """Return the text of `config.pbtxt` for a graph whose tensors are all [batch, *dims].

    Args:
        model: name of the model, and of its folder in the repository.
        inputs: exactly the inputs of the exported graph; features that are absent are left out.
        outputs: the outputs to serve.
        max_batch_size: rows in one run of the graph, of one request or of several together.
        max_queue_delay_microseconds: how long a request may wait for others to share a run with; at 0
            those are batched that arrive while the model is busy.
        intra_op_threads: threads of one run; 0 for all cores, which halved the throughput and about
            doubled the 99th percentile on two busy cores.

    Raises:
        ValueError: `max_batch_size` is below 1, which would mean that there is no batch dimension.
    """
    if max_batch_size < 1:
        raise ValueError(f"max_batch_size is {max_batch_size}; give 1 or more, as all tensors have a batch.")
    return _TEMPLATE.format(
        model=model,
        max_batch_size=max_batch_size,
        inputs="\n".join(_declaration("input", tensor) for tensor in inputs),
        outputs="\n".join(_declaration("output", tensor) for tensor in outputs),
        max_queue_delay_microseconds=max_queue_delay_microseconds,
        intra_op_threads=intra_op_threads,
    )


def read_config(text: str) -> ModelConfig:
    """Parse a `config.pbtxt`.

    Raises:
        google.protobuf.text_format.ParseError: it is none.
    """
    config: ModelConfig = text_format.Parse(text, ModelConfig())
    return config


def _declaration(kind: str, tensor: Tensor) -> str:
    dims = ", ".join(map(str, tensor.dims))
    return f'{kind} {{ name: "{tensor.name}" data_type: {_DATA_TYPES[tensor.dtype]} dims: [ {dims} ] }}'


def _step(step: Step) -> str:
    maps = [
        f'    {kind}_map {{ key: "{key}" value: "{value}" }}'
        for kind, tensors in (("input", step.inputs), ("output", step.outputs))
        for key, value in tensors.items()
    ]
    return "\n".join(["  step {", f'    model_name: "{step.model}"', "    model_version: -1", *maps, "  }"])
