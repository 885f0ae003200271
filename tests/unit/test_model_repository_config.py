import pytest
import torch

from watchrank.config import Config
from watchrank.export.release import ranking_inputs, triton_configs
from watchrank.models.candidate_generation import feature_names
from watchrank.models.inputs import InputLayer, id_features
from watchrank.models.ranking import RankingModel, served_outputs


@pytest.fixture(scope="module")
def generated():
    """The configurations of a release whose log has every column."""
    config = Config()
    absent = frozenset(config.ranking.exclude)
    keys = {domain: torch.arange(3) for domain in id_features(absent)}
    ranker = RankingModel(InputLayer(config.ranking, absent, keys), config.ranking)
    return triton_configs(
        feature_names(frozenset()),
        ranking_inputs(ranker),
        served_outputs(ranker.tasks),
        absent=(),
        index=config.index,
        with_search=True,
    )


def test_the_reviewed_configurations_are_the_generated_ones(repository, generated):
    folder = repository / "model_repository"
    reviewed = {path.parent.name: path.read_text(encoding="utf-8") for path in folder.glob("*/config.pbtxt")}
    assert reviewed == generated
