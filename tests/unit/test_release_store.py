"""The same releases in a folder and on a real server of the S3 protocol."""

import json
import shutil
import signal
import subprocess
import sys

import pytest
from pyarrow.fs import FileSystem

from watchrank.deployment.release_store import ReleaseStore, taken_numbers
from watchrank.errors import DeploymentError, InputError
from watchrank.object_storage import ObjectStore
from watchrank.releases import checksums, next_release

KINDS = ("folder", "s3")


@pytest.fixture(params=KINDS)
def url(request, tmp_path):
    return str(tmp_path / "some" / "store") if request.param == "folder" else request.getfixturevalue("s3")


@pytest.fixture
def store(url):
    return ReleaseStore(url)


def make_release(folder, number, weights=b"weights"):
    (folder / "ranking").mkdir(parents=True)
    (folder / "ranking" / "model.onnx").write_bytes(weights)
    (folder / "golden.json").write_bytes(b"")
    manifest = {"release": number, "endpoints": ["ranking"], "files": checksums(folder)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def files_at(url):
    s3 = url.startswith("s3://")
    return FileSystem.from_uri(f"{url}?allow_delayed_open=true" if s3 else f"file://{url}")


def overwrite(url, name, content):
    files, root = files_at(url)
    with files.open_output_stream(f"{root}/{name}", compression=None) as target:
        target.write(content)


def remove(url, name):
    files, root = files_at(url)
    files.delete_file(f"{root}/{name}")


def content(folder):
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


# -- Pushing and pulling ---------------------------------------------------------------------------


def test_what_is_pulled_is_what_was_pushed(store, tmp_path):
    weights = bytes(range(256)) * 50_000  # S3 takes it in two parts
    release = make_release(tmp_path / "release", 7, weights)
    assert store.numbers() == []
    assert store.push(release) == 7
    assert store.numbers() == [7]
    assert store.serving() is None
    pulled = store.pull(7, tmp_path / "pulled")
    assert pulled == tmp_path / "pulled" / "000007"
    assert {**checksums(pulled), "manifest.json": ""} == {**checksums(release), "manifest.json": ""}
    assert json.loads((pulled / "manifest.json").read_text()) == store.manifest(7)


def test_a_release_is_pushed_once(store, tmp_path, monkeypatch):
    release = make_release(tmp_path / "release", 7)
    store.push(release)
    monkeypatch.setattr(ObjectStore, "write", None)
    assert store.push(release) == 7


def test_another_release_of_the_same_number_is_refused(store, tmp_path):
    store.push(make_release(tmp_path / "release", 7))
    other = make_release(tmp_path / "other", 7, b"other weights")
    with pytest.raises(DeploymentError, match="holds another release 7, and a release is never replaced"):
        store.push(other)
    assert (store.pull(7, tmp_path / "pulled") / "ranking" / "model.onnx").read_bytes() == b"weights"
    with pytest.raises(DeploymentError, match=r"pulled/000007 is another release than 7 of "):
        ReleaseStore(_with(tmp_path / "second", other)).pull(7, tmp_path / "pulled")
    assert (tmp_path / "pulled" / "000007" / "ranking" / "model.onnx").read_bytes() == b"weights"


def _with(folder, release):
    ReleaseStore(str(folder)).push(release)
    return str(folder)


def test_a_damaged_release_is_not_pushed(store, tmp_path):
    release = make_release(tmp_path / "release", 7)
    (release / "ranking" / "model.onnx").write_bytes(b"other")
    with pytest.raises(DeploymentError, match=r"damaged: ranking/model.onnx"):
        store.push(release)
    assert store.numbers() == []


KILLED_PUSH = """
import os, signal, sys
from pathlib import Path
from watchrank import object_storage
from watchrank.deployment import release_store

steps = int(sys.argv[3])

def killed(source, target, length):
    global steps
    content = source.read()
    steps -= 1
    if steps < 0:
        target.write(content[:len(content) // 2])
        target.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    target.write(content)

object_storage.shutil.copyfileobj = killed
release_store.ReleaseStore(sys.argv[2]).push(Path(sys.argv[1]))
"""


def test_a_push_that_was_killed_is_not_seen_and_the_next_completes_it(store, tmp_path):
    release = make_release(tmp_path / "release", 7)
    killed = 0
    while True:
        command = [sys.executable, "-c", KILLED_PUSH, release, store.url, str(killed)]
        done = subprocess.run(command, check=False)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
        assert store.numbers() == []
        with pytest.raises(InputError, match="holds no release 7"):
            store.pull(7, tmp_path / "pulled")
        killed += 1
    assert killed == 3
    assert store.numbers() == [7]
    store.pull(7, tmp_path / "pulled")


def test_what_is_there_and_whole_is_not_fetched_again(store, tmp_path, monkeypatch):
    store.push(make_release(tmp_path / "release", 7))
    pulled = store.pull(7, tmp_path / "pulled")
    with monkeypatch.context() as patch:
        patch.setattr(ReleaseStore, "_fetch", None)
        assert store.pull(7, tmp_path / "pulled") == pulled
    for damaged in (pulled / "ranking" / "model.onnx", pulled / "manifest.json"):
        damaged.write_bytes(b"damaged")
        store.pull(7, tmp_path / "pulled")
        assert (pulled / "ranking" / "model.onnx").read_bytes() == b"weights"
        assert store.pull(7, tmp_path / "pulled") == pulled


@pytest.mark.parametrize("damage", ["bytes changed", "cut", "missing"])
def test_a_release_that_is_damaged_in_the_store_does_not_appear(store, tmp_path, damage):
    store.push(make_release(tmp_path / "release", 7))
    name = "releases/000007/ranking/model.onnx"
    if damage == "missing":
        remove(store.url, name)
    else:
        overwrite(store.url, name, b"wEights" if damage == "bytes changed" else b"weig")
    with pytest.raises(
        DeploymentError, match=r"Release 7 in .* is damaged: ranking/model.onnx is missing or"
    ):
        store.pull(7, tmp_path / "pulled")
    assert content(tmp_path / "pulled") == {".lock"}


OUTSIDE = ("../model.onnx", "/tmp/model.onnx", "ranking/../../model.onnx", "", ".", "ranking//model.onnx")


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_manifest_that_names_a_file_outside_is_refused(store, tmp_path, name):
    store.push(make_release(tmp_path / "release", 7))
    manifest = {**store.manifest(7), "files": {name: "0"}}
    overwrite(store.url, "releases/000007/manifest.json", json.dumps(manifest).encode())
    with pytest.raises(DeploymentError, match=r"names .*, no file of a release"):
        store.pull(7, tmp_path / "pulled")
    assert content(tmp_path / "pulled") == set()


@pytest.mark.parametrize(
    ("manifest", "sentence"),
    [
        (b"{", r"000007/manifest.json is damaged, it holds no JSON object"),
        (b"\xff", "holds no JSON object"),
        (b"[]", "holds no JSON object"),
        (b"{}", "is no manifest of release 7"),
        (b'{"release": 8, "files": {}, "endpoints": []}', "is no manifest of release 7"),
        (b'{"release": 7, "files": {}}', "is no manifest of release 7"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_named(store, tmp_path, manifest, sentence):
    store.push(make_release(tmp_path / "release", 7))
    overwrite(store.url, "releases/000007/manifest.json", manifest)
    with pytest.raises(DeploymentError, match=sentence):
        store.pull(7, tmp_path / "pulled")
    with pytest.raises(DeploymentError, match=sentence):
        store.serve(7)


@pytest.mark.parametrize("mine", [[], [3], [9]])
def test_a_new_release_gets_a_number_that_the_store_does_not_have(store, url, tmp_path, mine):
    assert taken_numbers(url) == taken_numbers(None) == []
    for number in (3, 7):
        store.push(make_release(tmp_path / str(number), number))
    for number in mine:
        make_release(tmp_path / "releases" / f"{number:06d}", number)
    with next_release(tmp_path / "releases", taken_numbers(url)) as (number, fresh):
        shutil.copytree(make_release(tmp_path / "new", number, b"new weights"), fresh, dirs_exist_ok=True)
    assert number == max(7, *mine, 0) + 1
    assert store.push(tmp_path / "releases" / f"{number:06d}") == number
    assert store.numbers() == [3, 7, number]


# -- The pointer -----------------------------------------------------------------------------------


def test_the_pointer_names_a_release_that_is_there(store, tmp_path):
    for number in (3, 7, 12):
        store.push(make_release(tmp_path / str(number), number))
    with pytest.raises(InputError, match="holds no release before the first"):
        store.release_before()
    with pytest.raises(InputError, match=r"holds no release 8. There are: \[3, 7, 12\]"):
        store.serve(8)
    assert store.serving() is None
    store.serve(12)
    assert ReleaseStore(store.url).serving() == 12
    assert store.release_before() == 7
    store.serve(3)
    assert store.serving() == 3
    with pytest.raises(InputError, match="holds no release before 3"):
        store.release_before()
    for _ in range(2):
        store.serve(None)
        assert store.serving() is None
    assert store.numbers() == [3, 7, 12]


def test_who_reads_the_pointer_while_it_is_written_gets_the_former_one(store, tmp_path, monkeypatch):
    for number in (3, 7):
        store.push(make_release(tmp_path / str(number), number))
    store.serve(3)
    seen = []

    def copy_half(source, target, length):
        target.write(source.read(9))
        seen.append(store.serving())
        target.write(source.read())

    monkeypatch.setattr("watchrank.object_storage.shutil.copyfileobj", copy_half)
    store.serve(7)
    assert seen == [3]
    assert store.serving() == 7


@pytest.mark.parametrize(
    "pointer", ["[7]", "7", '{"release": "7"}', '{"release": true}', '{"release": 0}', "{"]
)
def test_a_pointer_that_names_nothing_is_refused(store, tmp_path, pointer):
    store.push(make_release(tmp_path / "release", 7))
    store.serve(7)
    overwrite(store.url, "serving.json", pointer.encode())
    with pytest.raises(DeploymentError, match=r"serving.json (names no release|is damaged)"):
        store.serving()


# -- Stores that are not there ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["s3://", "s3:///prefix", "gs://bucket", "file:///store", "s3://b/p?some=thing"]
)
def test_a_url_of_another_kind_is_refused(url):
    with pytest.raises(InputError, match=r"is no release store; give the path of a folder or s3://bucket/"):
        ReleaseStore(url)


def test_a_server_that_is_not_there_is_named(s3, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    store = ReleaseStore(s3)
    with pytest.raises(
        DeploymentError, match=r"store s3://.* cannot be used .*[Cc]onnect.*AWS variables"
    ) as seen:
        store.serving()
    assert "\n" not in str(seen.value)


def test_a_bucket_that_is_not_there_is_named(s3, tmp_path):
    with pytest.raises(DeploymentError, match=r"nowhere cannot be used .*bucket does not exist"):
        ReleaseStore("s3://nowhere").push(make_release(tmp_path / "release", 7))


def test_a_folder_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "serving.json").mkdir()
    with pytest.raises(DeploymentError, match="store cannot be used"):
        ReleaseStore(str(tmp_path / "store")).serving()
