"""The client against small servers that speak Triton's protocol."""

import asyncio
import socket
import struct
from contextlib import asynccontextmanager, suppress

import grpc.aio
import numpy as np
import pytest
import tritonclient.grpc.aio as triton
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from watchrank.config import DeploymentSettings
from watchrank.errors import DeploymentError
from watchrank.serving.client import CHANNEL, TritonClient


class Model(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Takes an age, and answers with the name of its server, padded."""

    def __init__(self, name, padding):
        self.answer = np.array([name + " " * padding], np.object_)

    async def ModelMetadata(self, request, context):  # noqa: N802 - the protocol's name
        answer = service_pb2.ModelMetadataResponse(name=request.name)
        answer.inputs.add(name="age", datatype="FP32", shape=[-1, 1])
        return answer

    async def ModelInfer(self, request, context):  # noqa: N802
        answer = service_pb2.ModelInferResponse(model_name=request.model_name)
        answer.outputs.add(name="server", datatype="BYTES", shape=[1])
        text = str(self.answer[0]).encode()
        answer.raw_output_contents.append(len(text).to_bytes(4, "little") + text)
        return answer


@asynccontextmanager
async def serving(*names, padding=0):
    """Run a server of each name; yield the address that stands for all of them."""
    servers, ports = [], []
    for name in names:
        server = grpc.aio.server(options=[("grpc.max_send_message_length", -1)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Model(name, padding), server)
        ports.append(server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        servers.append(server)
    try:
        yield "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports), servers
    finally:
        for server in servers:
            await server.stop(None)


def to(address):
    return DeploymentSettings(grpc_url=address)


async def ask(client):
    answer = await client.infer("candidate_generation", {"age": np.ones((1, 1), np.float32)})
    return answer["server"][0].decode().rstrip()


def test_requests_are_spread_over_the_servers_of_a_name():
    async def asked():
        async with serving("a", "b", "c") as (address, _), TritonClient(to(address)) as client:
            for _ in range(100):
                if {await ask(client) for _ in range(3)} == {"a", "b", "c"}:
                    break
            return [await ask(client) for _ in range(30)]

    answers = asyncio.run(asked())
    assert {name: answers.count(name) for name in "abc"} == dict.fromkeys("abc", 10)


def test_the_others_answer_when_one_server_goes():
    async def asked():
        async with serving("a", "b") as (address, servers), TritonClient(to(address)) as client:
            await ask(client)
            await servers[0].stop(None)
            return {await ask(client) for _ in range(10)}

    assert asyncio.run(asked()) == {"b"}


def test_a_server_that_is_gone_is_looked_for_much_more_often_than_grpc_would():
    """gRPC waits longer and longer, up to two minutes: after a long outage it would hide that it is over."""

    async def looked_for():
        looks, enough = {"own": 0, "grpc": 0}, asyncio.Event()

        def refusing(name):
            def refuse(reader, writer):
                looks[name] += 1
                writer.close()
                if looks["grpc"] == 4:
                    enough.set()

            return asyncio.start_server(refuse, "127.0.0.1", 0)

        async with await refusing("own") as own, await refusing("grpc") as other:
            ports = [server.sockets[0].getsockname()[1] for server in (own, other)]
            plain = triton.InferenceServerClient(f"127.0.0.1:{ports[1]}", channel_args=CHANNEL[:1])
            async with TritonClient(to(f"127.0.0.1:{ports[0]}")) as client, plain:
                with suppress(DeploymentError):
                    await ask(client)
                with suppress(InferenceServerException):
                    await plain.is_server_live()
                await enough.wait()
        return looks

    assert dict(CHANNEL)["grpc.max_reconnect_backoff_ms"] <= 1_000, "what an outage of minutes comes to"
    looks = asyncio.run(looked_for())
    assert looks["own"] > 1.5 * looks["grpc"]


def test_an_answer_may_be_larger_than_grpcs_usual_4_mib():
    async def asked():
        async with serving("large", padding=5 << 20) as (address, _), TritonClient(to(address)) as client:
            return await ask(client)

    assert asyncio.run(asked()) == "large"


def test_a_server_that_is_not_there_is_named():
    async def asked():
        async with TritonClient(to("127.0.0.1:1")) as client:
            await ask(client)

    with pytest.raises(DeploymentError, match=r"^Triton at 127.0.0.1:1 cannot be reached; start it with"):
        asyncio.run(asked())


def test_a_server_that_breaks_the_connection_is_named():
    """As the system does for a process that is killed: with a reset."""

    def reset(reader, writer):
        at_once = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
        writer.close()

    async def asked():
        server = await asyncio.start_server(reset, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, TritonClient(to(f"127.0.0.1:{port}")) as client:
            await ask(client)

    with pytest.raises(DeploymentError, match=r"cannot be reached; start it with"):
        asyncio.run(asked())
