"""The local Triton server's own Python environment, and what the server needs to run from it.

Source: the layout of the `nvidia-pytriton` wheel (infra/triton_local/README.md).
"""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from watchrank.errors import DeploymentError

_DESCRIBE = """
import json, sys, sysconfig
version = f"{sys.version_info[0]}.{sys.version_info[1]}"
print(json.dumps([version, sysconfig.get_config_var("LIBDIR"), sysconfig.get_path("platlib")]))
"""


@dataclass(frozen=True, kw_only=True)
class ServerEnvironment:
    """The interpreter, its version (`3.11`), the folder of its libpython and its site-packages."""

    python: Path
    version: str
    libraries: Path
    packages: Path

    @property
    def tritonserver(self) -> Path:
        """The server's binary."""
        return self.packages / "pytriton" / "tritonserver" / "bin" / "tritonserver"

    def variables(self) -> dict[str, str]:
        """Return the environment variables by which the server's stubs find this very interpreter."""
        libraries = [self.packages / "nvidia_pytriton.libs", self.libraries]
        return {
            **os.environ,
            "PATH": f"{self.python.parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
        }


def read_environment(venv: Path) -> ServerEnvironment:
    """Ask the environment at `venv` where its parts lie.

    Raises:
        DeploymentError: there is none, its Python does not run, or it holds no Triton server.
    """
    python = venv / "bin" / "python"
    if not python.exists():
        raise DeploymentError(f"There is no Triton environment at {venv}; run `make env`.")
    try:
        answer = subprocess.run(
            [python, "-I", "-c", _DESCRIBE], capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError) as error:
        reason = f"The Python of the Triton environment {venv} does not run ({error})"
        raise DeploymentError(f"{reason}; remove it and run `make env`.") from None
    version, libraries, packages = json.loads(answer.stdout)
    environment = ServerEnvironment(
        python=python, version=version, libraries=Path(libraries), packages=Path(packages)
    )
    if not environment.tritonserver.exists():
        raise DeploymentError(f"The environment {venv} holds no Triton server; run `make env`.")
    return environment


def assemble_backends(environment: ServerEnvironment, stand_ins: Path, target: Path) -> None:
    """Lay the wheel's Python backend, its stub for this Python and the stand-in backends side by side.

    Raises:
        DeploymentError: the stand-in backends are not there, or the wheel knows no such Python.
    """
    root = environment.tritonserver.parents[1]
    stub = root / "python_backend_stubs" / environment.version / "triton_python_backend_stub"
    if not stand_ins.is_dir():
        raise DeploymentError(f"There are no backends at {stand_ins}; run from a checkout of the project.")
    if not stub.exists():
        raise DeploymentError(
            f"This Triton server has no backend for Python {environment.version}; "
            "make its environment with Python 3.11 or 3.12."
        )
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(stand_ins, target)
    shutil.copytree(root / "backends" / "python", target / "python")
    shutil.copy(stub, target / "python")
