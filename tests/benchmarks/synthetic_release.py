"""A release of any size, for the benchmarks of serving: untrained models of the real architecture."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from simulated import FEATURE_REPO, simulated_workspace

from watchrank.config import (
    CandidateSettings,
    ExampleSettings,
    ExportSettings,
    IndexSettings,
    RankingSettings,
)
from watchrank.datasets.batches import RankingBatches
from watchrank.datasets.candidates import CandidateDataset, build_candidate_dataset
from watchrank.datasets.ranking import RankingDataset
from watchrank.export import release as export
from watchrank.export import video_features
from watchrank.export.candidates import candidate_graph
from watchrank.export.golden import golden_requests, recommend_requests
from watchrank.export.onnx import save_graph
from watchrank.export.recommend import ReleaseGraphs, passed_on
from watchrank.feature_store import open_store
from watchrank.models.candidate_generation import CandidateModel
from watchrank.models.lookup import IdEmbedding, Vocabulary
from watchrank.models.ranking import RankingModel, served_outputs
from watchrank.releases import MANIFEST, checksums, next_release
from watchrank.schema import WATCH_HISTORY
from watchrank.storage import locked, write_json
from watchrank.training import candidate_generation, ranking
from watchrank.workspace import Workspace

IMPRESSIONS = 50_000
"""Of the simulated log that requests and features come from."""

WIDTH, K = 64, 20
INDEX, EXPORT = IndexSettings(), ExportSettings()
SPREAD = 0.2
"""Standard deviation of a video's logit."""

REQUESTS = 256

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Synthetic:
    """Models and features over N made-up videos, whose ids follow one another."""

    data: RankingDataset
    tower: CandidateModel
    ranker: RankingModel
    ids: np.ndarray
    features: Arrays


def prepared_workspace() -> Workspace:
    """Return a small simulated workspace with both datasets."""
    place = simulated_workspace(IMPRESSIONS)
    if not place.candidate_dataset.exists():
        store = open_store(FEATURE_REPO, place.features, place.feature_store)
        build_candidate_dataset(place.events, store, place.candidate_dataset, ExampleSettings())
    return place


def synthetic(place: Workspace, videos: int, first_id: int, seconds: float) -> Synthetic:
    """Make the models.

    Args:
        place: from `prepared_workspace`.
        videos: N; ids are `first_id` and so on.
        first_id: of the videos.
        seconds: about the geometric mean of what the ranker answers.
    """
    torch.manual_seed(0)
    draw = np.random.default_rng(0)
    data, ids = RankingDataset.open(place.dataset), first_id + np.arange(videos)
    known = np.array(CandidateDataset.open(place.candidate_dataset).videos["video_id"])
    store = open_store(FEATURE_REPO, place.features, place.feature_store)
    real = video_features.catalogue_features(store, known, datetime.now(UTC))
    rows = draw.integers(len(known), size=videos)
    return Synthetic(
        data=data,
        tower=untrained_tower(place, ids, clustered(videos, draw)),
        ranker=untrained_ranker(data, ids, seconds),
        ids=ids,
        features={name: values[rows] for name, values in real.items()},
    )


def clustered(videos: int, draw: np.random.Generator) -> np.ndarray:
    """Return vectors [N, D] of unequal lengths; those of one cluster follow one another."""
    centres = draw.standard_normal((max(20, videos // 500), WIDTH), np.float32)
    weights = draw.lognormal(0, 0.7, len(centres))
    chosen = np.sort(draw.choice(len(centres), videos, p=weights / weights.sum()))
    vectors = centres[chosen] + 0.6 * draw.standard_normal((videos, WIDTH), np.float32)
    return (vectors * np.exp(0.2 * draw.standard_normal((videos, 1)))).astype(np.float32)


@torch.no_grad()
def untrained_tower(place: Workspace, ids: np.ndarray, vectors: np.ndarray) -> CandidateModel:
    """Candidate generation that finds videos like the watched ones."""
    settings = CandidateSettings(dim=WIDTH, tied=True, depth=1)
    data = CandidateDataset.open(place.candidate_dataset)
    tower = candidate_generation.new_model(data, settings).tower
    tower.embeddings["video"] = IdEmbedding(Vocabulary(torch.from_numpy(ids)), WIDTH)
    tower.embedding("video").table.weight[1:] = torch.from_numpy(vectors)
    first = tower.layers[0]
    first.weight += torch.eye(*first.weight.shape)  # the mean of the watched videos' vectors comes first
    return CandidateModel(tower, settings).eval()


@torch.no_grad()
def untrained_ranker(data: RankingDataset, ids: np.ndarray, seconds: float) -> RankingModel:
    """A ranker whose answers spread about `seconds`, so that an order of videos is clear."""
    model = ranking.new_model(data, RankingSettings())
    videos = IdEmbedding(Vocabulary(torch.from_numpy(ids)), RankingSettings().video_dim)
    torch.nn.init.normal_(videos.table.weight[1:])
    model.inputs.embeddings["video"] = videos
    test = data.split("test")
    rows = np.random.default_rng(0).choice(len(test), min(len(test), 2_000), replace=False)
    features = RankingBatches(test, model.inputs.input_names, 1).read(np.sort(rows)).features
    features["video_id"] = torch.from_numpy(np.random.default_rng(0).choice(ids, len(rows))[:, None])
    model.eval()
    model.towers.logit.weight *= SPREAD / model(features).std()
    model.towers.logit.bias += np.log(seconds) - model(features).mean()
    return model


def write_release(made: Synthetic, releases: Path) -> Path:
    """Write the next release, as `export_release` does but for the parity of candidate generation."""
    absent, names = made.data.absent_features, made.ranker.inputs.input_names
    outputs = export.served_features(names, absent)
    tower, size = made.tower, INDEX.k
    with locked(releases), next_release(releases) as (number, fresh):
        save_graph(candidate_graph(tower, INDEX, EXPORT), made_in(fresh, "candidate_generation"))
        graph = video_features.feature_graph(made.ids, made.features, outputs, EXPORT)
        save_graph(graph, made_in(fresh, "video_features"))
        export.export_ranking(made.ranker, made.data, made_in(fresh, "ranking"), EXPORT)
        ranked, with_channels = served_outputs(made.ranker.tasks), "channel_id" not in absent
        passed = passed_on(ranked, with_search=False)
        export.export_rerank(tower, number, with_channels, passed, made_in(fresh, "rerank"), size, EXPORT)
        inputs = export.ranking_inputs(made.ranker)
        for model, config in export.triton_configs(tower.tower.names, inputs, ranked, absent, INDEX).items():
            made_in(fresh, model).with_name("config.pbtxt").write_text(config)
        write_json(fresh / "golden.json", golden_requests(fresh, made.data, EXPORT))
        manifest = {"release": number, "endpoints": export.ENDPOINTS, "files": checksums(fresh)}
        write_json(fresh / MANIFEST, manifest)
    return releases / f"{number:06d}"


def made_in(release: Path, model: str) -> Path:
    """Return the file of a model's graph in a folder that is there."""
    (release / model).mkdir(exist_ok=True)
    return release / model / "model.onnx"


def requests_of(data: RankingDataset, release: Path, videos: int, first_id: int = 0) -> list[Arrays]:
    """Return requests of one user each, who has watched videos of about one cluster."""
    names = [spec.name for spec in ReleaseGraphs(release)._config.input]
    rows = recommend_requests(data, names, REQUESTS)
    count = len(rows["now"])
    first = np.random.default_rng(0).integers(videos - WATCH_HISTORY, size=(count, 1))
    rows |= {"watched_video_ids": first_id + first + np.arange(WATCH_HISTORY), "k": np.full((count, 1), K)}
    return [{name: values[row : row + 1] for name, values in rows.items()} for row in range(count)]
