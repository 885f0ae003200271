"""What a store names after a rollout that does not end well; the others are in the integration tests."""

import json

import pytest
from pyarrow.fs import FileSystem

from watchrank.config import DeploymentSettings
from watchrank.deployment import rollout
from watchrank.deployment.release_store import ReleaseStore
from watchrank.deployment.rollout import champion, roll_out, switch
from watchrank.errors import DeploymentError, InputError
from watchrank.releases import checksums, verify

NOWHERE = DeploymentSettings(grpc_url="127.0.0.1:1")


def make_release(folder, number):
    (folder / "ranking").mkdir(parents=True)
    (folder / "ranking" / "model.onnx").write_bytes(b"weights %d" % number)
    manifest = {"release": number, "endpoints": ["ranking"], "files": checksums(folder)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def overwrite(store, name, content):
    files, root = FileSystem.from_uri(store.url)
    with files.open_output_stream(f"{root}/{name}") as target:
        target.write(content)


@pytest.fixture
def store(s3, tmp_path):
    """A store that holds releases 1 and 3, and names 1 to serve."""
    store = ReleaseStore(s3)
    for number in (1, 3):
        store.push(make_release(tmp_path / str(number), number))
    store.serve(1)
    return store


def test_a_release_that_no_triton_takes_up_is_not_named_for_long(store, tmp_path):
    release = make_release(tmp_path / "2", 2)
    sentence = (
        r"^Release 2 does not serve: No Triton can be reached at 127.0.0.1:1; .* after 0.1 s; "
        r"s3://\S+ names release 1. See why in the log of `watchrank follow`.$"
    )
    with pytest.raises(DeploymentError, match=sentence):
        roll_out(release, store, NOWHERE, 0.1)
    assert store.serving() == 1
    assert store.numbers() == [1, 2, 3]


def test_when_the_first_release_does_not_serve_none_is_named(store, tmp_path):
    store.serve(None)
    with pytest.raises(DeploymentError, match=r"s3://\S+ names no release\."):
        switch(1, store, NOWHERE, 0.1)
    assert store.serving() is None


def test_what_another_one_named_meanwhile_stays(store, monkeypatch):
    monkeypatch.setattr(rollout, "serving", lambda endpoints, settings: store.serve(3))
    with pytest.raises(DeploymentError, match=r"serves no whole release after 0 s; s3://\S+ names release 3"):
        switch(1, store, NOWHERE, 0)
    assert store.serving() == 3


def test_an_interrupted_wait_lets_the_former_release_be_named(store, monkeypatch):
    def interrupted(endpoints, settings):
        assert store.serving() == 3
        raise KeyboardInterrupt

    monkeypatch.setattr(rollout, "serving", interrupted)
    with pytest.raises(KeyboardInterrupt):
        switch(3, store, NOWHERE, 60)
    assert store.serving() == 1


def test_after_a_rollout_that_was_killed_what_triton_serves_is_the_former_release(store, monkeypatch):
    store.serve(3)
    with pytest.raises(DeploymentError, match=r"No Triton can be reached .* s3://\S+ names release 3"):
        switch(3, store, NOWHERE, 0)
    monkeypatch.setattr(rollout, "serving", lambda endpoints, settings: None)
    with pytest.raises(DeploymentError, match=r"no whole release .* s3://\S+ names release 3"):
        switch(3, store, NOWHERE, 0)
    monkeypatch.setattr(rollout, "serving", lambda endpoints, settings: 1)
    with pytest.raises(DeploymentError, match=r"s3://\S+ names release 1"):
        switch(3, store, NOWHERE, 0)
    assert store.serving() == 1


def test_a_pointer_that_cannot_be_put_back_is_named(store, monkeypatch):
    def damaged(endpoints, settings):
        overwrite(store, "serving.json", b"{")
        return 1

    monkeypatch.setattr(rollout, "serving", damaged)
    sentence = r"serves release 1 after 0 s; s3://\S+ may still name it \(.*/serving.json is damaged"
    with pytest.raises(DeploymentError, match=sentence):
        switch(3, store, NOWHERE, 0)


def test_a_release_that_is_not_in_the_store_changes_nothing(store):
    with pytest.raises(InputError, match=r"holds no release 2. There are: \[1, 3\]"):
        switch(2, store, NOWHERE, 60)
    assert store.serving() == 1


# -- The champion ----------------------------------------------------------------------------------


def test_the_champion_is_what_the_store_names(store, tmp_path):
    assert champion(store, tmp_path / "releases") == tmp_path / "releases" / "000001"
    store.serve(3)
    assert verify(champion(store, tmp_path / "releases"))["release"] == 3
    store.serve(None)
    assert champion(store, tmp_path / "releases") is None


def test_a_champion_that_is_damaged_in_the_store_is_refused(store, tmp_path):
    overwrite(store, "releases/000001/ranking/model.onnx", b"other")
    with pytest.raises(DeploymentError, match=r"Release 1 in .* is damaged: ranking/model.onnx"):
        champion(store, tmp_path / "releases")
