"""A typed, asynchronous client of the models of a release: arrays in, arrays out, over gRPC."""

import asyncio
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, NoReturn, Self

import numpy as np
import tritonclient.grpc.aio as triton
from tritonclient.grpc import InferInput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from watchrank.config import DeploymentSettings
from watchrank.errors import DeploymentError, InputError
from watchrank.schema import (
    CANDIDATE_INPUTS,
    CANDIDATES,
    RANKING_INPUTS,
    RECOMMEND_INPUTS,
    WEIGHT,
    Tensor,
    score_weight,
)

SCHEMAS: dict[str, Sequence[Tensor]] = {
    "candidate_generation": CANDIDATE_INPUTS,
    "ranking": RANKING_INPUTS,
    "recommend": RECOMMEND_INPUTS,
    "text_match": CANDIDATE_INPUTS,
}
"""The inputs of each endpoint."""

CHANNEL = [
    ("grpc.lb_policy_name", "round_robin"),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
]
"""Spread requests over every address that the server's name stands for; take tensors of any size; look for a
server that is gone every second, as gRPC's own two minutes would hide that it is back."""

UNCONNECTED = ("failed to connect", "connections to all backends")
"""What gRPC says, beside others, when it has no connection: it never had one, or what it had broke."""

RETRY_SECONDS = 0.05
"""Pause before the one retry of a request that the server did not get."""


class TritonClient:
    """Asks the models of a Triton server, in one event loop and over one connection to each of its addresses.

    A model on the server says which inputs of its schema it takes: those whose features are absent in its
    data are no inputs, and are not sent.
    """

    def __init__(self, settings: DeploymentSettings) -> None:
        """Describe the connection; must run inside the event loop that will use it."""
        self._client = triton.InferenceServerClient(settings.grpc_url, channel_args=CHANNEL)
        self._url = settings.grpc_url
        self.timeout_seconds = settings.timeout_seconds
        """How long a request may take when it has no deadline of its own."""
        self._names: dict[str, list[str]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()

    async def infer(
        self,
        endpoint: str,
        inputs: Mapping[str, np.ndarray],
        *,
        model: str | None = None,
        deadline: float | None = None,
    ) -> dict[str, np.ndarray]:
        """Return the outputs of a model for `inputs`.

        Args:
            endpoint: "recommend", "ranking", "candidate_generation" or "text_match".
            inputs: arrays by the names of the endpoint's schema, each [batch, *dims] of its dtype, with
                the same batch and the same number of candidates K in all. Weights of tasks may be left out.
            model: the name under which a certain release's model is loaded, when not the endpoint is asked.
            deadline: the event loop's time until which the answer may take, retries and all; as the settings
                say when not given.

        Raises:
            InputError: a tensor is missing, unknown, or of the wrong dtype or shape.
            DeploymentError: the server cannot be reached, does not answer in time or fails.
        """
        now = asyncio.get_running_loop().time()
        latest = now + self.timeout_seconds if deadline is None else deadline
        try:
            async with asyncio.timeout_at(latest):
                return await self._ask(endpoint, inputs, model or endpoint)
        except TimeoutError:
            raise DeploymentError(
                f"Triton at {self._url} did not answer within {max(latest - now, 0):.2g} s; look at its log."
            ) from None
        except InferenceServerException as error:
            self._explain(error)

    async def _ask(self, endpoint: str, inputs: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
        names = self._names.get(name) or await self._read_names(name)
        tensors = checked(SCHEMAS[endpoint], with_weights(inputs, names), names)
        try:
            return await self._infer_twice(name, tensors)
        except InferenceServerException as error:
            if not await self._inputs_changed(name, error):
                raise
        return await self._ask(endpoint, inputs, name)

    async def _infer_twice(self, name: str, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Ask; ask once more when the server could not be reached."""
        try:
            return await self._infer(name, tensors)
        except InferenceServerException as error:
            if error.status() != "StatusCode.UNAVAILABLE":
                raise
        await asyncio.sleep(RETRY_SECONDS)
        return await self._infer(name, tensors)

    async def _infer(self, name: str, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        answer = await self._client.infer(name, infer_inputs(InferInput, tensors))
        return {output.name: answer.as_numpy(output.name) for output in answer.get_response().outputs}

    async def _read_names(self, name: str) -> list[str]:
        metadata = await self._client.get_model_metadata(name)
        self._names[name] = [tensor.name for tensor in metadata.inputs]
        return self._names[name]

    async def _inputs_changed(self, name: str, error: InferenceServerException) -> bool:
        """Return whether the refusal comes from a new release that takes other inputs than the one before."""
        before = self._names[name]
        return error.status() == "StatusCode.INVALID_ARGUMENT" and await self._read_names(name) != before

    def _explain(self, error: InferenceServerException) -> NoReturn:
        where = f"Triton at {self._url}"
        match error.status():
            case "StatusCode.INVALID_ARGUMENT":
                raise InputError(f"{where} refused the request: {error.message()}") from None
            case _ if "unknown model" in error.message():
                raise DeploymentError(
                    f"{where} does not serve this model ({error.message()}); deploy a release that has it."
                ) from None
            case "StatusCode.UNAVAILABLE" if any(said in error.message().lower() for said in UNCONNECTED):
                raise DeploymentError(f"{where} cannot be reached; start it with `make serve`.") from None
            case _:
                raise DeploymentError(f"{where} failed: {error.message()}") from None


def checked(
    schema: Sequence[Tensor], inputs: Mapping[str, np.ndarray], names: list[str]
) -> dict[str, np.ndarray]:
    """Return those of `inputs` that are in `names`, all held against the schema.

    Raises:
        InputError: a tensor is missing, unknown, or of the wrong dtype or shape.
    """
    weights = [score_weight(name.removesuffix(WEIGHT)) for name in names if name.endswith(WEIGHT)]
    known = {tensor.name: tensor for tensor in (*schema, *weights)}
    for name in [*inputs, *names]:
        if name not in known:
            raise InputError(f"Tensor {name!r} is no input; the inputs are {', '.join(known)}.")
    for name in names:
        if name not in inputs:
            raise InputError(f"Tensor {name!r} is missing; the model takes {', '.join(names)}.")
    sizes: dict[str, int] = {}
    for name, array in inputs.items():
        _check_tensor(known[name], array, sizes)
    return {name: inputs[name] for name in names}


def with_weights(inputs: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the inputs with NaN, for the release's own, in place of weights of tasks that are not given."""
    rows = next((len(array) for array in inputs.values() if array.ndim), 0)
    own = {name: np.full((rows, 1), np.nan, np.float32) for name in names if name.endswith(WEIGHT)}
    return own | dict(inputs)


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
