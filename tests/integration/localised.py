"""What Triton's own S3 file system does before it loads a model, for a server that cannot read S3.

Source: triton-inference-server/core, src/filesystem/implementations/s3.h: the folder of the model is copied
down; the time of an object is that of its Last-Modified header, in whole seconds, and a folder has none.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tritonclient.grpc as grpc
from pyarrow.fs import FileSelector, FileSystem


def copy_before_loading(
    monkeypatch: pytest.MonkeyPatch,
    repository: str,
    folder: Path,
    seconds: Callable[[float], float] = lambda modified: modified,
) -> None:
    """Let every call that loads a model first copy it from a repository on S3 to the folder of a Triton.

    `seconds` may change the time at which an object is said to have been written.
    """
    load = grpc.InferenceServerClient.load_model

    def copy_and_load(self, model, **options):
        _copy(repository, model, folder / model, seconds)
        return load(self, model, **options)

    monkeypatch.setattr(grpc.InferenceServerClient, "load_model", copy_and_load)


def _copy(repository: str, model: str, folder: Path, seconds: Callable[[float], float]) -> None:
    files, root = FileSystem.from_uri(repository)
    shutil.rmtree(folder, ignore_errors=True)
    selector = FileSelector(f"{root}/{model}", allow_not_found=True, recursive=True)
    for info in sorted(files.get_file_info(selector), key=lambda info: info.path):
        target = folder / info.path.removeprefix(f"{root}/{model}/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if info.is_file:
            with files.open_input_stream(info.path) as source:
                target.write_bytes(source.read())
            os.utime(target, (0, int(seconds(info.mtime.timestamp()))))
        else:
            target.mkdir(exist_ok=True)
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            os.utime(path, (0, 0))
