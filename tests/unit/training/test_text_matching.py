import json

import numpy as np
import onnxruntime as ort
import pytest
import torch
from safetensors.torch import load_file

from watchrank.config import ExportSettings, TextSettings, TextTrainingSettings
from watchrank.datasets.batches import Share
from watchrank.datasets.searches import SearchDataset, build_search_dataset
from watchrank.errors import InputError
from watchrank.export.text import export_text
from watchrank.models.text.two_towers import QUERY, TITLE
from watchrank.schema import Tensor
from watchrank.training import fit as fit_module
from watchrank.training.text_matching import (
    SearchBatches,
    document_features,
    load_model,
    new_model,
    title_vectors,
    train_text,
)

TEXT = TextSettings(width=24, dim=16, max_words=12, max_ngrams=8)
TRAINING = TextTrainingSettings(epochs=3, batch_size=32)


@pytest.fixture(scope="module")
def dataset(prepared, tmp_path_factory) -> SearchDataset:
    folder = tmp_path_factory.mktemp("searches") / "dataset"
    build_search_dataset(prepared.place.events, folder, TEXT, prepared.config.split)
    return SearchDataset.open(folder)


@pytest.mark.parametrize("tower", ["bag_of_words", "cnn", "lstm"])
@pytest.mark.parametrize("loss", ["in_batch", "negatives"])
def test_training_lowers_the_loss_and_the_model_reads_back_as_it_was(dataset, tmp_path, tower, loss):
    text = TEXT.model_copy(update={"tower": tower, "loss": loss})
    curve = train_text(dataset.path, tmp_path / "model", text, TRAINING)
    assert curve[-1].train_loss < 0.9 * curve[0].train_loss
    assert min(line.validation_loss for line in curve) < curve[0].validation_loss
    weights = load_file(tmp_path / "model" / "weights.safetensors")
    assert not [name for name in weights if name.startswith("document.text")], "shared weights are saved once"
    model, again = load_model(tmp_path / "model"), load_model(tmp_path / "model")
    assert model.query.text is model.document.text
    x = next(SearchBatches(dataset, "test", ["channel_id", "category"], 8).epoch()).features
    assert torch.equal(model(x)[1], again(x)[1])
    state = model.state_dict()
    for name, value in weights.items():
        assert torch.equal(state[name], value)
    assert {name.replace("document.text", "query.text") for name in state} == set(weights)
    assert not (tmp_path / "model.checkpoint").exists()


def test_a_run_that_was_broken_off_ends_as_an_uninterrupted_one(dataset, tmp_path, monkeypatch):
    text = TEXT.model_copy(update={"loss": "negatives"})
    training = TRAINING.model_copy(update={"checkpoint_steps": 2})
    train_text(dataset.path, tmp_path / "whole", text, training)
    step = fit_module.Fit._step

    def broken(self, group):
        if (self.state.epoch, self.state.step) == (1, 3):
            raise KeyboardInterrupt
        step(self, group)

    monkeypatch.setattr(fit_module.Fit, "_step", broken)
    with pytest.raises(KeyboardInterrupt):
        train_text(dataset.path, tmp_path / "broken", text, training)
    assert (tmp_path / "broken.checkpoint").exists()
    steps = []
    monkeypatch.setattr(
        fit_module.Fit, "_step", lambda self, group: (steps.append(self.state.epoch), step(self, group))
    )
    train_text(dataset.path, tmp_path / "broken", text, training)
    assert 0 not in steps, "the first epoch is not run again"
    whole, resumed = (load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "broken"))
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0)


def test_an_epoch_holds_every_search_once_with_its_query_video_and_negatives(dataset):
    train, documents = dataset.split("train"), dataset.documents
    batches = SearchBatches(dataset, "train", ["channel_id"], 32, negatives=4, seed=3)
    parts = list(batches.epoch(1))
    assert len(parts) == len(batches)
    shown = torch.cat([part.labels["document"] for part in parts])
    assert shown.shape == (len(train["document"]), 5)
    assert sorted(shown[:, 0].tolist()) == sorted(train["document"].tolist())
    assert np.isin(shown.numpy(), train["document"]).all(), "a negative is of training"
    assert len(np.unique(shown[:, 1:])) > 100
    order = np.arange(len(train["document"]))
    np.random.default_rng([3, 1]).shuffle(order)
    for part, rows in zip(parts, np.split(order, range(32, len(order), 32)), strict=True):
        flat = part.labels["document"].flatten().numpy()
        assert part.features["channel_id"].tolist() == documents["channel_id"][flat][:, None].tolist()
        for name, whole in ((QUERY, dataset.queries[train["query"][rows]]), (TITLE, documents[TITLE][flat])):
            ids = part.features[name].numpy()
            cut = whole.copy()
            cut[:, : ids.shape[1], : ids.shape[2]] -= ids
            assert not cut[:, : ids.shape[1], : ids.shape[2]].any()
            assert (cut[:, ids.shape[1] :] == -1).all()
            assert (cut[:, :, ids.shape[2] :] == -1).all()
    again = next(batches.epoch(1, skip=2))
    assert torch.equal(again.labels["document"], parts[2].labels["document"])
    assert not torch.equal(next(batches.epoch(2)).labels["document"], parts[0].labels["document"])
    halves = [
        next(SearchBatches(dataset, "train", [], 32, negatives=4, seed=3, share=Share(own, 2)).epoch(1))
        for own in range(2)
    ]
    assert torch.equal(halves[0].labels["document"], parts[0].labels["document"][::2])
    assert torch.equal(halves[1].labels["document"], parts[0].labels["document"][1::2])


def test_the_vocabularies_are_those_of_the_training_searches_and_of_their_videos(dataset):
    train, documents = dataset.split("train"), dataset.documents
    model = new_model(dataset, TEXT)
    own = np.unique(train["document"])
    seen = {*dataset.queries[np.unique(train["query"])].ravel(), *documents[TITLE][own].ravel()} - {-1}
    assert set(model.query.text.bags.vocabulary.keys.tolist()) == seen
    channels = model.document.fields.embeddings["channel_id"].vocabulary.keys
    assert set(channels.tolist()) == set(documents["channel_id"][own].tolist())
    assert len(own) < len(documents["video_id"])
    few = new_model(dataset, TEXT.model_copy(update={"max_ngram_ids": 7, "fields": False}))
    assert len(few.query.text.bags.vocabulary.keys) == 7
    assert few.document.fields is None


def test_the_title_vectors_are_those_of_the_exported_document_tower_for_all_videos(dataset, tmp_path):
    train_text(dataset.path, tmp_path / "model", TEXT, TRAINING.model_copy(update={"epochs": 1}))
    model = load_model(tmp_path / "model")
    ids, vectors = title_vectors(model, dataset)
    unwatched = ~np.isin(np.arange(len(ids)), dataset.split("train")["document"])
    assert unwatched.sum() > 20
    assert ids.tolist() == dataset.documents["video_id"].tolist()
    assert len(np.unique(vectors[unwatched].round(5), axis=0)) > 0.9 * unwatched.sum()
    fields = [
        Tensor(name=name, dtype="int64", dims=(1,), description="") for name in ("channel_id", "category")
    ]
    rows = np.arange(0, len(ids), 7)
    x = document_features(dataset.documents, ["channel_id", "category"], rows)
    arrays = {name: value.numpy() for name, value in x.items()}
    sample = arrays | {QUERY: np.array(dataset.queries[: len(rows)])}
    export_text(model, tmp_path / "text", sample, fields, ExportSettings())
    (answer,) = ort.InferenceSession(tmp_path / "text" / "document.onnx").run(None, arrays)
    np.testing.assert_allclose(vectors[rows], answer, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_gamma_starts_where_it_is_set_and_stays_when_it_is_not_learned(dataset, tmp_path, monkeypatch):
    found = []
    run = fit_module.Fit.run

    def watched(self):
        curve = run(self)
        found.append(self.model.gamma.item())
        return curve

    monkeypatch.setattr(fit_module.Fit, "run", watched)
    for learned in (False, True):
        text = TEXT.model_copy(update={"gamma": 5.0, "gamma_learned": learned})
        train_text(dataset.path, tmp_path / "model", text, TRAINING)
    assert found[0] == pytest.approx(5, rel=1e-5)
    assert abs(found[1] - 5) > 0.01


def test_settings_that_read_texts_otherwise_than_the_dataset_are_refused(dataset, tmp_path):
    with pytest.raises(InputError, match=r"built with text.max_words 12, not 9; run `watchrank search-datas"):
        train_text(dataset.path, tmp_path / "model", TEXT.model_copy(update={"max_words": 9}), TRAINING)
    with pytest.raises(InputError, match="run `watchrank search-dataset`"):
        train_text(tmp_path, tmp_path / "model", TEXT, TRAINING)
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(InputError, match="Cannot read the model"):
        load_model(tmp_path)
