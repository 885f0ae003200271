"""Reads all that a workspace holds, again and again until SIGTERM; ends with an error when a part is broken.

What is missing is no fault, unless it was there before.
"""

import signal
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path

import pyarrow.parquet as pq
import torch
from feast.protos.feast.core.Registry_pb2 import Registry

from watchrank import events
from watchrank.datasets.candidates import CandidateDataset
from watchrank.datasets.ranking import RankingDataset
from watchrank.datasets.searches import SearchDataset
from watchrank.features.record import Build
from watchrank.releases import release_numbers, verify
from watchrank.training.folders import read_curve, read_model
from watchrank.workspace import Workspace


def read_tables(folder: Path) -> None:
    for file in folder.rglob("*.parquet"):
        if not any(part.startswith(".") for part in file.relative_to(folder).parts):
            pq.ParquetFile(file).read()  # opens it once: another one may take its place


def read_events(folder: Path) -> None:
    events.manifest(folder)
    read_tables(folder)


def read_features(folder: Path) -> None:
    Build.model_validate_json((folder / "build.json").read_bytes())
    read_tables(folder)


def read_state(folder: Path) -> None:
    if (folder / "registry.db").exists():
        Registry().ParseFromString((folder / "registry.db").read_bytes())
    if (folder / "online.db").exists():
        with closing(sqlite3.connect(f"file:{folder}/online.db?mode=rw", uri=True, timeout=30)) as store:
            assert store.execute("PRAGMA quick_check").fetchone() == ("ok",)


def read_dataset(folder: Path) -> None:
    split = RankingDataset.open(folder).split("train")
    assert len(split) == RankingDataset.open(folder).manifest["splits"]["train"]["rows"]


def read_checkpoint(file: Path) -> None:
    torch.load(file, weights_only=True)


def read_trained(folder: Path) -> None:
    read_model(folder)
    read_curve(folder)


def read_releases(folder: Path) -> None:
    for number in release_numbers(folder):
        verify(folder / f"{number:06d}")


place = Workspace(Path(sys.argv[1]))
models = (place.model, place.candidate_model, place.text_model)
readers = {
    place.events: read_events,
    place.features: read_features,
    place.feature_store: read_state,
    place.dataset: read_dataset,
    place.candidate_dataset: lambda folder: CandidateDataset.open(folder).split("train"),
    place.search_dataset: lambda folder: SearchDataset.open(folder).split("train"),
    **dict.fromkeys(models, read_trained),
    **{model.with_name(f"{model.name}.checkpoint"): read_checkpoint for model in models},
    place.releases: read_releases,
}
stopped: list[int] = []
signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
print("ready", flush=True)
rounds, seen = 0, set()
while not stopped or not rounds:
    for path, read in readers.items():
        there = path.exists()
        assert there or path not in seen or path.suffix == ".checkpoint", f"{path} was there and is gone"
        for _ in range(5):  # a folder may be replaced, and a checkpoint removed, while it is read
            try:
                if path.exists():
                    read(path)
                    seen.add(path)
                break
            except FileNotFoundError:
                continue
        else:
            raise AssertionError(f"{path} lacks a file")
    rounds += 1
    time.sleep(0.05)
