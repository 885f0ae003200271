"""A user who floods the log below every bound does not move what the model says of the others."""

import shutil
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from watchrank.config import Config
from watchrank.datasets.ranking import RankingDataset, build_ranking_dataset
from watchrank.evaluation.evaluate import predict
from watchrank.feature_store import open_store
from watchrank.features import build_features
from watchrank.ingestion import ingest
from watchrank.simulation import simulate
from watchrank.training.ranking import load_model, train_ranking
from watchrank.validation import validate
from watchrank.workspace import Workspace

CONFIG = Config.model_validate(
    {
        "simulation": {"impressions": 24_000, "users": 300, "videos": 400, "channels": 40, "days": 16},
        "ranking": {"hidden": "256", "quantiles": 16},
        "training": {"epochs": 2, "batch_size": 1_024},
    }
)
SPAMMER, A_DAY = 10**6, 300
"""A day has about 1,500 impressions of others, and a fifth may be of one user."""

pytestmark = pytest.mark.slow


def with_spam(log, target):
    """Copy a log and add a user who opens videos at random, all day and every day, for 5 seconds each."""
    shutil.copytree(log, target)
    days, (videos,) = CONFIG.simulation.days, pq.read_table(log / "videos.parquet", columns=["video_id"])
    start = datetime.combine(CONFIG.simulation.start, datetime.min.time(), UTC)
    rows = {
        "user_id": np.full(days * A_DAY, SPAMMER),
        "video_id": np.random.default_rng(0).choice(videos.to_numpy(), days * A_DAY),
        "timestamp": [start + timedelta(days=place / A_DAY) for place in range(days * A_DAY)],
        "clicked": np.ones(days * A_DAY, bool),
        "watch_seconds": np.full(days * A_DAY, 5.0),
        "surface": ["home"] * days * A_DAY,
    }
    add(target / "users.parquet", target / "users.parquet", {"user_id": [SPAMMER]})
    add(
        target / "impressions" / "part-00000.parquet", target / "impressions" / "spam.parquet", rows, own=True
    )
    return target


def add(like, file, columns, own=False):
    """Write rows with the columns of a file, after its rows or as an own file; others are missing."""
    before = pq.read_table(like)
    size = len(columns["user_id"])
    values = [pa.array(columns.get(field.name, [None] * size), field.type) for field in before.schema]
    rows = pa.table(values, schema=before.schema)
    pq.write_table(rows if own else pa.concat_tables([before, rows]), file)


def trained(log, root, repository):
    """Return the workspace of a log that passed validation, with its model."""
    place = Workspace(root)
    ingest(log, "own", place.events, CONFIG.ingestion, CONFIG.engine)
    validate(place.events, place.validation, CONFIG.validation)
    build_features(place.events, place.features, CONFIG.features, CONFIG.engine)
    store = open_store(repository / "feature_repo", place.features, place.feature_store)
    build_ranking_dataset(place.events, store, place.dataset, CONFIG.split)
    train_ranking(place.dataset, place.model, CONFIG.ranking, CONFIG.training)
    return place


def test_a_spam_user_moves_the_answers_for_others_less_than_another_seed_does(tmp_path, repository):
    simulate(tmp_path / "log", tmp_path / "truth", CONFIG.simulation)
    plain = trained(tmp_path / "log", tmp_path / "plain", repository)
    spoilt = trained(with_spam(tmp_path / "log", tmp_path / "spam"), tmp_path / "spoilt", repository)
    other = CONFIG.training.model_copy(update={"seed": 1})
    train_ranking(plain.dataset, tmp_path / "other", CONFIG.ranking, other)

    asked = RankingDataset.open(plain.dataset).split("test")
    before = predict(load_model(plain.model), asked)

    def moved(model):
        return float(np.median(np.abs(np.log(predict(load_model(model), asked) / before))))

    by_seed, by_spam = moved(tmp_path / "other"), moved(spoilt.model)
    print(f"median |ln ratio|: {by_spam:.3f} by the spam user, {by_seed:.3f} by another seed")
    assert 0 < by_spam < by_seed
