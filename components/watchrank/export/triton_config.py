"""The configuration of a model in Triton's repository, generated from the schema.

Source: the ModelConfig message of Triton 24.10; what its C++ ONNX Runtime backend checks at load is
that the inputs are exactly the graph's, and that dtypes and dims fit them.
"""

from collections.abc import Sequence

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


def _declaration(kind: str, tensor: Tensor) -> str:
    dims = ", ".join(map(str, tensor.dims))
    return f'{kind} {{ name: "{tensor.name}" data_type: {_DATA_TYPES[tensor.dtype]} dims: [ {dims} ] }}'
