import numpy as np
import onnxruntime as ort
import pytest
import torch

from watchrank.config import (
    CandidateSettings,
    CandidateTrainingSettings,
    ExampleSettings,
    ExportSettings,
    IndexSettings,
)
from watchrank.datasets.candidates import CandidateDataset, build_candidate_dataset
from watchrank.errors import ParityError
from watchrank.export import candidates
from watchrank.export.candidates import export_candidates
from watchrank.training.candidate_generation import CandidateBatches, load_model, train_candidates

K = 20


@pytest.fixture(scope="module")
def trained(prepared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("candidates")
    build_candidate_dataset(prepared.place.events, prepared.store, folder / "dataset", ExampleSettings())
    training = CandidateTrainingSettings(epochs=1, batch_size=256)
    train_candidates(folder / "dataset", folder / "model", CandidateSettings(dim=16), training)
    return folder


@pytest.mark.parametrize("variant", ["exact", "inverted_file"])
def test_the_graph_answers_with_the_best_videos_that_were_not_watched_or_excluded(trained, tmp_path, variant):
    index = IndexSettings(k=K, variant=variant, probes=10_000 if variant == "inverted_file" else None)
    parity = export_candidates(
        trained / "model", trained / "dataset", tmp_path / "g", index, ExportSettings()
    )
    assert parity["recall"] == 1
    model, test = load_model(trained / "model"), CandidateDataset.open(trained / "dataset").split("test")
    x = CandidateBatches(test, model.tower.names, 1).read(np.arange(30)).features
    with torch.no_grad():
        scores = model(x) @ model.vectors.T
    keys = model.vocabulary.keys
    best = keys[scores.argsort(1, descending=True)]
    excluded = best[:, :3]
    session = ort.InferenceSession(tmp_path / "g" / "model.onnx")
    inputs = {name: value.numpy() for name, value in x.items()}
    videos, found = session.run(None, {**inputs, "excluded_video_ids": excluded.numpy()})
    for row in range(30):
        banned = {*excluded[row].tolist(), *x["watched_video_ids"][row].tolist()}
        assert videos[row].tolist() == [video for video in best[row].tolist() if video not in banned][:K]
        place = torch.searchsorted(keys, torch.from_numpy(videos[row]))
        np.testing.assert_allclose(found[row], scores[row, place].numpy(), rtol=1e-4, atol=1e-4)


def test_the_example_age_is_an_input_that_changes_the_answer_and_nonsense_in_it_is_0(trained, tmp_path):
    export_candidates(
        trained / "model", trained / "dataset", tmp_path / "g", IndexSettings(k=K), ExportSettings()
    )
    session = ort.InferenceSession(tmp_path / "g" / "model.onnx")
    inputs = {spec.name: spec for spec in session.get_inputs()}
    assert inputs["example_age"].shape[1:] == [1]
    x = {
        name: np.full((1, spec.shape[1] if isinstance(spec.shape[1], int) else 0), -1, np.int64)
        for name, spec in inputs.items()
    }
    x |= {"age": np.full((1, 1), np.nan, np.float32)}

    def scores(age):
        return session.run(["scores"], x | {"example_age": np.full((1, 1), age, np.float32)})[0]

    assert not np.allclose(scores(0), scores(1e9))
    assert np.array_equal(scores(0), scores(np.nan))
    assert np.isfinite(scores(np.inf)).all()


def test_a_graph_that_scores_otherwise_is_not_kept(trained, tmp_path, monkeypatch):
    """The index is built of other vectors than the model's."""
    build = candidates.build_index
    monkeypatch.setattr(
        candidates, "build_index", lambda vectors, *rest, **named: build(1.01 * vectors, *rest, **named)
    )
    with pytest.raises(ParityError, match="differs from the trained model"):
        export_candidates(
            trained / "model", trained / "dataset", tmp_path / "g", IndexSettings(k=K), ExportSettings()
        )
    assert not (tmp_path / "g").exists()
