"""A typed client of the ranking model: arrays in, expected watch seconds out, over gRPC."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, NoReturn, Self

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from watchrank.config import DeploymentSettings
from watchrank.errors import DeploymentError, InputError
from watchrank.schema import CANDIDATES, RANKING_INPUTS, Tensor

_SCHEMA = {tensor.name: tensor for tensor in RANKING_INPUTS}


class TritonClient:
    """Asks one model of a Triton server; threads may share it.

    The model on the server says which of `schema.RANKING_INPUTS` it takes: those whose features are absent
    in its data are no inputs, and are not sent.
    """

    def __init__(self, settings: DeploymentSettings, model: str = "ranking") -> None:
        """Describe the connection; the server is first asked by `rank`."""
        self._client = triton.InferenceServerClient(settings.grpc_url)
        self._settings = settings
        self._model = model
        self._names: list[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def rank(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the model's outputs, `expected_watch_time` [batch, K] float32 in seconds, for `inputs`.

        Args:
            inputs: arrays by the names of `schema.RANKING_INPUTS`, each [batch, *dims] of its dtype, with
                the same batch and the same number of candidates K in all.

        Raises:
            InputError: a tensor is missing, unknown, or of the wrong dtype or shape.
            DeploymentError: the server cannot be reached, does not answer in time or fails.
        """
        tensors = checked(inputs, self._names or self._read_names())
        try:
            return self._infer(tensors)
        except InferenceServerException as error:
            if self._inputs_changed(error):
                return self.rank(inputs)
            self._explain(error)

    def _read_names(self) -> list[str]:
        try:
            metadata = self._client.get_model_metadata(
                self._model, client_timeout=self._settings.timeout_seconds
            )
        except InferenceServerException as error:
            self._explain(error)
        self._names = [tensor.name for tensor in metadata.inputs]
        return self._names

    def _inputs_changed(self, error: InferenceServerException) -> bool:
        """Return whether the refusal comes from a new release that takes other inputs than the one before."""
        before = self._names
        return error.status() == "StatusCode.INVALID_ARGUMENT" and self._read_names() != before

    def _infer(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        answer = self._client.infer(
            self._model,
            infer_inputs(triton.InferInput, tensors),
            client_timeout=self._settings.timeout_seconds,
        )
        return {output.name: answer.as_numpy(output.name) for output in answer.get_response().outputs}

    def _explain(self, error: InferenceServerException) -> NoReturn:
        where = f"Triton at {self._settings.grpc_url}"
        match error.status():
            case "StatusCode.INVALID_ARGUMENT":
                raise InputError(f"{where} refused the request: {error.message()}") from None
            case "StatusCode.DEADLINE_EXCEEDED":
                seconds = f"{self._settings.timeout_seconds:g} s"
                raise DeploymentError(f"{where} did not answer within {seconds}; look at its log.") from None
            case "StatusCode.UNAVAILABLE" if "failed to connect" in error.message():
                raise DeploymentError(f"{where} cannot be reached; start it with `make serve`.") from None
            case _:
                raise DeploymentError(f"{where} failed: {error.message()}") from None


def checked(inputs: Mapping[str, np.ndarray], names: list[str]) -> dict[str, np.ndarray]:
    """Return those of `inputs` that are in `names`, all held against `schema.RANKING_INPUTS`.

    Raises:
        InputError: a tensor is missing, unknown, or of the wrong dtype or shape.
    """
    for name in [*inputs, *names]:
        if name not in _SCHEMA:
            raise InputError(f"Tensor {name!r} is no ranking input; the inputs are {', '.join(_SCHEMA)}.")
    for name in names:
        if name not in inputs:
            raise InputError(f"Tensor {name!r} is missing; the model takes {', '.join(names)}.")
    sizes: dict[str, int] = {}
    for name, array in inputs.items():
        _check_tensor(_SCHEMA[name], array, sizes)
    return {name: inputs[name] for name in names}


def infer_inputs(kind: type[Any], tensors: Mapping[str, np.ndarray]) -> list[Any]:
    """Return the arrays as `kind`: the InferInput of tritonclient.grpc or of tritonclient.http."""
    inputs = []
    for name, array in tensors.items():
        tensor = kind(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    return inputs


def _check_tensor(tensor: Tensor, array: np.ndarray, sizes: dict[str, int]) -> None:
    """Check one array; `sizes` holds the batch and K that the arrays before it have set."""
    if array.dtype != np.dtype(tensor.dtype):
        raise InputError(f"Tensor {tensor.name!r} is {array.dtype}; give it as {tensor.dtype}.")
    wanted = ("batch", *("K" if size == CANDIDATES else size for size in tensor.dims))
    if array.ndim == len(wanted):
        expected = [
            sizes.setdefault(want, size) if isinstance(want, str) else want
            for want, size in zip(wanted, array.shape, strict=True)
        ]
        if expected == list(array.shape):
            return
    known = "".join(f", {name} is {size}" for name, size in sizes.items())
    raise InputError(
        f"Tensor {tensor.name!r} has shape {array.shape}; give [{', '.join(map(str, wanted))}]{known}."
    )
