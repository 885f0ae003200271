from watchrank.export.release import ranking_config
from watchrank.schema import RANKING_INPUTS


def test_the_reviewed_configuration_is_the_generated_one(repository):
    reviewed = (repository / "model_repository" / "ranking" / "config.pbtxt").read_text(encoding="utf-8")
    import torch

    from watchrank.config import RankingSettings
    from watchrank.models.inputs import InputLayer, id_features

    absent = frozenset(RankingSettings().exclude)
    keys = {domain: torch.arange(3) for domain in id_features(absent)}
    names = InputLayer(RankingSettings(), absent, keys).input_names
    assert reviewed == ranking_config([spec for spec in RANKING_INPUTS if spec.name in names])
