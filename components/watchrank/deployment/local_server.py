"""The real Triton server on this machine, with no container.

`tritonserver` comes from the `nvidia-pytriton` wheel in an environment of its own (infra/triton_local).
That build lacks the ONNX Runtime backend; a Python-based backend of the same name stands in for it, so
that the model repository is the very one that production serves.
"""

import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from watchrank.config import DeploymentSettings
from watchrank.deployment import self_check
from watchrank.deployment.administration import admin_headers, restricted_options, write_key
from watchrank.deployment.model_repository import CONFIG
from watchrank.deployment.server_environment import ServerEnvironment, assemble_backends, read_environment
from watchrank.errors import DeploymentError

BACKENDS = Path(__file__).resolve().parents[3] / "infra" / "triton_local" / "backends"
"""Where the stand-in backends lie in a checkout."""

_HOST = "127.0.0.1"
_STOP_SECONDS = 10
_LOG_LINES = 12

_GUARD = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""
"""Becomes the server, which then gets SIGTERM when the thread that started it ends, however it ends."""


@dataclass(frozen=True, kw_only=True)
class Ports:
    """Where the server listens, on 127.0.0.1 only."""

    grpc: int = 8001
    http: int = 8000
    metrics: int = 8002

    @classmethod
    def free(cls) -> Self:
        """Return three ports that are free now."""
        with ExitStack() as stack:
            sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
            for each in sockets:
                each.bind((_HOST, 0))
            grpc, http, metrics = (each.getsockname()[1] for each in sockets)
        return cls(grpc=grpc, http=http, metrics=metrics)

    def check_free(self) -> None:
        """Raise DeploymentError when something listens on one of the ports."""
        for port in (self.grpc, self.http, self.metrics):
            with socket.socket() as probe:
                if probe.connect_ex((_HOST, port)) == 0:
                    raise DeploymentError(
                        f"Something listens on {_HOST}:{port} already; stop it or choose other ports."
                    )


class LocalTriton:
    """A running Triton server with explicit model control, as a context manager.

    It starts, checks itself with known numbers, and stops with all its children, also when the parent
    is killed. The thread that starts it must live as long as it.
    """

    def __init__(
        self,
        *,
        venv: Path,
        repository: Path,
        state: Path,
        ports: Ports | None = None,
        models: Sequence[str] = (),
        timeout_seconds: float = 60,
        backends: Path = BACKENDS,
    ) -> None:
        """Describe the server; nothing starts yet.

        Args:
            venv: the server's Python environment, made by `make env`.
            repository: the model repository; made when it is not there.
            state: folder for the backends and the log; one a running server.
            ports: where to listen; free ports when not given.
            models: models to load at the start. The others are loaded when asked for.
            timeout_seconds: how long the start may take.
            backends: folder of the stand-in backends.
        """
        self.ports = ports or Ports.free()
        self.log = state / "triton.log"
        self._venv = venv.absolute()
        self._repository = repository.absolute()
        self._state = state.absolute()
        self._self_check = self._state / "self_check"
        self._models = models
        self._timeout_seconds = timeout_seconds
        self._backends = backends
        self._shared_memory = f"watchrank_triton_{self.ports.grpc}_"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def settings(self) -> DeploymentSettings:
        """The default settings, with this server's addresses."""
        return self.reached_by(DeploymentSettings())

    def reached_by(self, settings: DeploymentSettings) -> DeploymentSettings:
        """Return `settings` with the addresses and the admin key of this server."""
        addresses = {f"{name}_url": f"{_HOST}:{port}" for name, port in asdict(self.ports).items()}
        return settings.model_copy(update={**addresses, "admin_key_file": self._state / "admin_key"})

    @property
    def pid(self) -> int:
        """The server's process id, which is its process group's too."""
        return self._running().pid

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and return when it answers rightly.

        Raises:
            DeploymentError: the environment or a model is missing, a port is taken, the server stopped or
                was not ready in time (the message quotes the end of its log), or it computes wrong numbers.
        """
        environment = read_environment(self._venv)
        self.ports.check_free()
        self._check_models()
        assemble_backends(environment, self._backends, self._state / "backends")
        self._repository.mkdir(parents=True, exist_ok=True)
        try:
            self_check.write(self._self_check)
            write_key(self._state / "admin_key")
            self._launch(environment)
            self._wait_until_ready()
            self._check_numbers()
        except BaseException:
            self.stop()
            raise
        finally:
            self_check.remove(self._self_check)

    def wait(self) -> None:
        """Block until the server stops.

        Raises:
            DeploymentError: it has stopped by itself; the message quotes the end of its log.
        """
        self._running().wait()
        raise self._failure("Triton stopped")

    def stop(self) -> None:
        """Stop the server and all its children; does nothing when it is not running."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        _end_group(process)
        for left in Path("/dev/shm").glob(f"{self._shared_memory}*"):
            left.unlink()

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            raise DeploymentError("The local Triton is not running; start it first.")
        return self._process

    def _check_models(self) -> None:
        for model in self._models:
            if not (self._repository / model / CONFIG).is_file():
                raise DeploymentError(
                    f"The model repository {self._repository} has no model {model!r}; deploy a release first."
                )

    def _launch(self, environment: ServerEnvironment) -> None:
        guard = [str(environment.python), "-I", "-c", _GUARD, str(os.getpid())]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*guard, str(environment.tritonserver), *self._options()],
                env=environment.variables(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _options(self) -> list[str]:
        return [
            f"--model-repository={self._repository}",
            f"--model-repository={self._self_check}",
            f"--backend-directory={self._state / 'backends'}",
            "--model-control-mode=explicit",
            *(f"--load-model={model}" for model in self._models),
            "--disable-auto-complete-config",
            "--strict-readiness=false",
            f"--backend-config=python,shm-region-prefix-name={self._shared_memory}",
            f"--exit-timeout-secs={_STOP_SECONDS // 2}",
            *restricted_options(self._state / "admin_key"),
            *(f"--{protocol}-address={_HOST}" for protocol in ("grpc", "http", "metrics")),
            f"--grpc-port={self.ports.grpc}",
            f"--http-port={self.ports.http}",
            f"--metrics-port={self.ports.metrics}",
        ]

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self._timeout_seconds
        while not _answers(f"http://{self.settings.http_url}/v2/health/ready"):
            if self._running().poll() is not None:
                raise self._failure("Triton stopped while it was starting")
            if time.monotonic() > deadline:
                raise self._failure(f"Triton was not ready within {self._timeout_seconds:g} s")
            time.sleep(0.05)

    def _check_numbers(self) -> None:
        try:
            with triton.InferenceServerClient(self.settings.grpc_url) as client:
                headers = admin_headers(self.settings)
                right = self_check.computes_rightly(client, self._timeout_seconds, headers)
        except InferenceServerException as error:
            raise self._failure(f"The local Triton failed its self-check ({error.message()})") from None
        if not right:
            raise DeploymentError(
                f"The local Triton computes wrong numbers: its environment {self._venv} is not the pinned "
                "one (numpy must be below 2); remove it and run `make env`."
            )

    def _failure(self, what: str) -> DeploymentError:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        telling = [line for line in lines if line and not line.startswith(("|", "+"))]
        return DeploymentError("\n".join([f"{what}; the end of {self.log}:", *telling[-_LOG_LINES:]]))


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _end_group(process: "subprocess.Popen[bytes]") -> None:
    """Kill what is left of the server's process group, and reap the server."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
