"""Releases: one immutable, numbered folder that holds all that serves together."""

import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from watchrank import __version__
from watchrank.config import ExportSettings, IndexSettings
from watchrank.datasets.candidates import CandidateDataset
from watchrank.datasets.ranking import RankingDataset, Split
from watchrank.datasets.searches import SearchDataset
from watchrank.evaluation.evaluate import watch_time_task
from watchrank.export import candidates, made_of, recommend, rerank, sources, text, video_features
from watchrank.export.golden import answered_again, as_slates, golden_requests, last_rows
from watchrank.export.index import EXCLUDED, WATCHED
from watchrank.export.onnx import export_onnx, save_graph
from watchrank.export.parity import Parity, check_parity, edge_cases
from watchrank.export.triton_config import triton_config
from watchrank.graphs import checked
from watchrank.models.candidate_generation import CandidateModel
from watchrank.models.ranking import RankingModel, ServedRanking, served_outputs, weight_inputs
from watchrank.models.text.tokens import as_search
from watchrank.releases import MANIFEST, checksums, find_release, next_release
from watchrank.schema import (
    CANDIDATE_INPUTS,
    EXCLUDED_VIDEO_IDS,
    PAD_ID,
    RANKING_INPUTS,
    VIDEO_TENSORS,
    Tensor,
)
from watchrank.storage import locked, reading, write_json
from watchrank.training.candidate_generation import load_model as load_candidate_model
from watchrank.training.ranking import load_model as load_ranking_model
from watchrank.training.text_matching import load_model as load_text_model
from watchrank.training.text_matching import title_vectors

if TYPE_CHECKING:
    from feast import FeatureStore

ENDPOINTS = ("candidate_generation", "ranking", recommend.MODEL)
"""The models that callers may ask, in the order in which a deployment switches them; `text_match` first."""

POPULAR_VIDEOS = 500
MAX_BATCH_SIZE = 64


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a release is made of: trained models and the datasets that they were trained on.

    Text matching is for logs with searches and titles.
    """

    ranking: Path
    dataset: Path
    candidates: Path
    candidate_dataset: Path
    text: Path | None = None
    search_dataset: Path | None = None

    @property
    def models(self) -> dict[str, Path]:
        """The trained models, by their names in a release."""
        named = {"ranking": self.ranking, "candidate_generation": self.candidates, text.MODEL: self.text}
        return {name: folder for name, folder in named.items() if folder}

    @property
    def datasets(self) -> dict[str, Path]:
        """Their datasets, by the same names."""
        named = (self.dataset, self.candidate_dataset, self.search_dataset)
        return {name: folder for name, folder in zip(self.models, named, strict=False) if folder}


def export_release(
    trained: Trained,
    store: "FeatureStore",
    metrics: dict[str, Any],
    releases: Path,
    index: IndexSettings,
    settings: ExportSettings,
    taken: Collection[int] = (),
) -> Path:
    """Export the trained models, check them, and make them the next release, if it is not there yet.

    Args:
        trained: the models; parity and the golden requests come from the last windows of their datasets.
        store: gives the features of the videos, as of now.
        metrics: of the evaluations, kept in the manifest.
        releases: folder of all releases. A second export that starts meanwhile waits for this one.
        index: the kind of index, and how many candidates are ranked.
        settings: of the export.
        taken: numbers of releases elsewhere, which it does not get.

    Returns:
        The folder of the release, `releases/<number>`: a new one, or one that was made of the same.

    Raises:
        ParityError: a graph answers differently from its model; no release is made.
    """
    with reading(*trained.models.values(), *trained.datasets.values()), locked(releases):
        ranker, data = load_ranking_model(trained.ranking), RankingDataset.open(trained.dataset)
        videos = np.array(CandidateDataset.open(trained.candidate_dataset).videos["video_id"])
        features = video_features.catalogue_features(store, videos, datetime.now(UTC)) | {"video_id": videos}
        parts = made_of.parts(trained.models, trained.datasets, (index, settings), features)
        if there := find_release(releases, parts):
            return there
        with next_release(releases, taken) as (number, fresh):
            parity = _write_graphs(trained, ranker, data, features, number, fresh, index, settings)
            made_of.keep(trained.models, fresh)
            manifest = {
                "release": number,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "code_version": __version__,
                "endpoints": [text.MODEL, *ENDPOINTS] if trained.text else ENDPOINTS,
                "model": ranker.kind,
                "data": data.manifest["splits"],
                "until": data.manifest["splits"]["test"]["until"],
                "warm_started_from": made_of.started_from(trained.models, releases),
                "made_of": parts,
                "metrics": metrics,
                "parity": parity,
                "showcase_users": _active_users(data.split("test")),
                "files": checksums(fresh),
            }
            write_json(fresh / MANIFEST, manifest)
    return releases / f"{number:06d}"


def _write_graphs(
    trained: Trained,
    ranker: RankingModel,
    data: RankingDataset,
    features: Mapping[str, np.ndarray],
    number: int,
    fresh: Path,
    index: IndexSettings,
    settings: ExportSettings,
) -> dict[str, dict[str, float]]:
    """Write all that Triton serves, and what is asked of it; return the parities by model."""
    tower = load_candidate_model(trained.candidates)
    absent, graph, with_search = data.absent_features, "model.onnx", trained.text is not None
    inputs, outputs = ranking_inputs(ranker), served_outputs(ranker.tasks)
    found = candidates.export_candidates(
        trained.candidates, trained.candidate_dataset, fresh / "candidate_generation", index, settings
    )
    matched = _export_search(trained, fresh / text.MODEL / graph, index, settings)
    if recommend.has_sources(inputs, with_search=with_search):
        made = sources.source_graph(
            with_search=with_search, recent_seconds=index.search_seconds, settings=settings
        )
        save_graph(made, fresh / "sources" / graph)
    parity = export_ranking(ranker, data, fresh / "ranking" / graph, settings)
    served = served_features(ranker.inputs.input_names, absent)
    catalogue = video_features.feature_graph(features["video_id"], features, served, settings)
    save_graph(catalogue, fresh / "video_features" / graph)
    export_rerank(
        tower,
        number,
        "channel_id" not in absent,
        recommend.passed_on(outputs, with_search=with_search),
        fresh / "rerank" / graph,
        index.k,
        settings,
    )
    configs = triton_configs(tower.tower.names, inputs, outputs, absent, index, with_search=with_search)
    for model, config in configs.items():
        (fresh / model).mkdir(exist_ok=True)
        (fresh / model / "config.pbtxt").write_text(config, encoding="utf-8")
    write_json(fresh / "golden.json", golden_requests(fresh, data, settings))
    write_json(fresh / "popular.json", popular_videos(data.split("train")))
    return {"ranking": parity.differences, "candidate_generation": found, **matched}


def refresh_release(
    release: Path,
    store: "FeatureStore",
    releases: Path,
    settings: ExportSettings,
    taken: Collection[int] = (),
) -> Path:
    """Make the next release out of an earlier one with the videos' features as of now; nothing is trained.

    Args:
        release: the earlier one.
        store: gives the features of the videos.
        releases: folder of all releases.
        settings: of the export.
        taken: numbers of releases elsewhere, which it does not get.

    Raises:
        InputError: `release` is no release.
        DeploymentError: it is damaged, or must not be loaded.
    """
    manifest = checked(release)
    golden = json.loads((release / "golden.json").read_text(encoding="utf-8"))
    with locked(releases), next_release(releases, taken) as (number, fresh):
        shutil.copytree(release, fresh, dirs_exist_ok=True)
        (fresh / MANIFEST).unlink()
        graph = fresh / "video_features" / "model.onnx"
        outputs = video_features.outputs_of(graph)
        videos = video_features.videos_of(graph)
        found = video_features.catalogue_features(store, videos, datetime.now(UTC))
        save_graph(video_features.feature_graph(videos, found, outputs, settings), graph)
        recommend.set_release(fresh / "rerank" / "model.onnx", number)
        write_json(fresh / "golden.json", answered_again(golden, fresh))
        if "made_of" in manifest:
            manifest["made_of"]["video_features"] = made_of.features_checksum(found | {"video_id": videos})
        manifest |= {
            "release": number,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "refreshed_from": manifest["release"],
            "files": checksums(fresh),
        }
        write_json(fresh / MANIFEST, manifest)
    return releases / f"{number:06d}"


# -- The single models --------------------------------------------------------------------------------


def triton_configs(
    tower_names: Collection[str],
    of_ranking: Sequence[Tensor],
    ranking_outputs: Sequence[Tensor],
    absent: Collection[str],
    index: IndexSettings,
    *,
    with_search: bool = False,
) -> dict[str, str]:
    """Return Triton's configuration of every model of a release.

    Args:
        tower_names: the features that candidate generation reads.
        of_ranking: the inputs of ranking.
        ranking_outputs: its outputs.
        absent: the features that the log lacks.
        index: how many candidates each source proposes.
        with_search: whether searches are matched with titles.
    """
    of_tower = [*candidates.tower_inputs(tower_names), EXCLUDED_VIDEO_IDS]
    features = served_features({spec.name for spec in of_ranking}, absent)
    passed = [spec.name for spec in recommend.passed_on(ranking_outputs, with_search=with_search)]
    ranked = [*rerank.rerank_outputs(index.k, passed), recommend.RELEASE]
    tensors: dict[str, tuple[Sequence[Tensor], Sequence[Tensor]]] = {
        "candidate_generation": (of_tower, candidates.candidate_outputs(index.k)),
        "video_features": ([video_features.VIDEOS], features),
        "ranking": (of_ranking, ranking_outputs),
        "rerank": (rerank.rerank_inputs("channel_id" not in absent, passed), ranked),
    }
    if recommend.has_sources(of_ranking, with_search=with_search):
        tensors["sources"] = (sources.source_inputs(with_search), sources.source_outputs())
    if with_search:
        of_search = [text.SEARCH, *(spec for spec in CANDIDATE_INPUTS if spec.name in (WATCHED, EXCLUDED))]
        tensors[text.MODEL] = (of_search, candidates.candidate_outputs(index.search_k))
    configs = {
        model: triton_config(model, inputs, outputs, max_batch_size=MAX_BATCH_SIZE)
        for model, (inputs, outputs) in tensors.items()
    }
    ensemble = recommend.recommend_config(
        of_tower,
        features,
        of_ranking,
        ranking_outputs,
        index.k,
        MAX_BATCH_SIZE,
        with_search=with_search,
    )
    return {**configs, recommend.MODEL: ensemble}


def served_features(ranking_names: Collection[str], absent: Collection[str]) -> list[Tensor]:
    """Return the features of videos that ranking reads, and the channel for its limit."""
    read = {*ranking_names, "channel_id"} - set(absent)
    return video_features.feature_outputs([spec.name for spec in VIDEO_TENSORS if spec.name in read])


def ranking_inputs(ranker: RankingModel) -> list[Tensor]:
    """Return the inputs of a ranker's graph: the features that it reads, and its tasks' weights."""
    features = [spec for spec in RANKING_INPUTS if spec.name in ranker.inputs.input_names]
    return [*features, *weight_inputs(ranker.tasks)]


def export_ranking(
    ranker: RankingModel, data: RankingDataset, graph: Path, settings: ExportSettings
) -> Parity:
    """Write the graph of a ranker and check that it answers as the model does.

    Raises:
        InputError: the ranker does not predict watch time, or a weight of the score is of no task.
        ParityError: the graph answers differently.
    """
    watch_time_task(ranker)
    inputs, head = ranking_inputs(ranker), ServedRanking(ranker, settings.score_weights).eval()
    export_onnx(head, inputs, served_outputs(ranker.tasks), graph, settings)
    rows = last_rows(data, inputs, settings.parity_rows)
    cases = edge_cases(inputs, rows) | {"several candidates": as_slates(inputs, rows)}
    return check_parity(head, graph, cases, tolerance=settings.tolerance, maxima=head.maxima)


def _export_search(
    trained: Trained, file: Path, index: IndexSettings, settings: ExportSettings
) -> dict[str, dict[str, float]]:
    """Write the graph that matches searches with titles, where there is a model; return its parity."""
    if trained.text is None or trained.search_dataset is None:
        return {}
    model = load_text_model(trained.text)
    data = SearchDataset.open(trained.search_dataset)
    ids, vectors = title_vectors(model, data)
    save_graph(text.search_graph(model.query, ids, vectors, index, settings), file)
    searches = as_search(np.asarray(data.queries[: settings.parity_rows]))
    found = text.check_search(model.query, ids, vectors, file, searches, settings.tolerance)
    return {text.MODEL: found}


def export_rerank(
    tower: CandidateModel,
    number: int,
    with_channels: bool,
    passed: Sequence[Tensor],
    file: Path,
    size: int,
    settings: ExportSettings,
) -> None:
    """Write the graph of re-ranking, which compares videos by the tower's vectors and passes numbers on."""
    vectors, ids = tower.vectors.detach().numpy(), tower.vocabulary.keys.numpy()
    names = [spec.name for spec in passed]
    graph = rerank.rerank_graph(
        vectors, ids, size=size, with_channels=with_channels, settings=settings, passed=names
    )
    save_graph(graph, file)
    recommend.set_release(file, number)


# -- What the manifest tells, and what to answer when nothing else can ---------------------------------


def _active_users(split: Split) -> list[int]:
    """A few users of the last window with many requests, to show what the release answers."""
    users, requests = np.unique(split.requests["user_id"], return_counts=True)
    active: list[int] = users[np.argsort(-requests, kind="stable")[:10]].tolist()
    return active


def popular_videos(train: Split) -> dict[str, list[int]]:
    """Return the videos of the most watch time in the training window, overall and by user language.

    Returns:
        Video ids, most watched first, under "all" and under the text id of each language.
    """
    frame = pd.DataFrame(
        {
            "video_id": train.impressions["video_id"],
            "seconds": train.impressions["watch_seconds"],
            "language": train.requests["user_language"][train.impressions["request"]],
        }
    )
    totals = frame.groupby(["language", "video_id"])["seconds"].sum().reset_index()
    popular = {"all": _most_watched(totals.groupby("video_id")["seconds"].sum().reset_index())}
    for language, group in totals[totals["language"] != PAD_ID].groupby("language"):
        popular[str(language)] = _most_watched(group)
    return popular


def _most_watched(totals: pd.DataFrame) -> list[int]:
    ids: list[int] = totals.sort_values("seconds", ascending=False)["video_id"].head(POPULAR_VIDEOS).tolist()
    return ids
