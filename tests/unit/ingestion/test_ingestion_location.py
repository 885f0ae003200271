"""Logs on a real server of the S3 protocol."""

import shutil
import urllib.request
from collections import namedtuple

import pytest
from pyarrow.fs import FileSystem, LocalFileSystem, copy_files

from watchrank.errors import InputError
from watchrank.ingestion.location import local_log

SEQUENCES = "user_sequences.parquet"


@pytest.fixture
def upload(s3, tmp_path):
    """Return a function that puts files by name, or a folder, at the URL; it returns the URL."""
    files, root = FileSystem.from_uri(s3)

    def put(content):
        if isinstance(content, dict):
            for name, data in content.items():
                with files.open_output_stream(f"{root}/{name}", compression=None) as target:
                    target.write(data)
        else:
            copy_files(str(content), root, LocalFileSystem(), files)
        return s3

    return put


def names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("ending", ["parquet", "csv.gz"])
def test_events_are_those_of_the_same_log_on_this_machine(
    log, run, upload, files_in, tmp_path, monkeypatch, ending
):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    data = log.write(tmp_path / "data", ending)
    (data / "impressions").mkdir()
    (data / f"impressions.{ending}").rename(data / "impressions" / f"part-0.{ending}")
    with local_log(upload(data), "own") as fetched:
        assert {name: content for name, (_, content) in files_in(fetched).items()} == {
            name: content for name, (_, content) in files_in(data).items()
        }
        there = run(fetched, tmp_path / "there")
    here = run(data, tmp_path / "here")
    assert there == here
    contents = [
        {name: content for name, (_, content) in files_in(tmp_path / place).items()}
        for place in ("there", "here")
    ]
    assert contents[0] == contents[1]
    assert not list((tmp_path / "temporary").iterdir())


def test_a_folder_of_this_machine_is_read_where_it_lies(tmp_path):
    with local_log(str(tmp_path), "own") as folder:
        assert folder == tmp_path


@pytest.mark.parametrize(
    ("source", "fetched"),
    [
        ("own", {"users.csv", "impressions.parquet", "impressions/a.parquet", "searches/b.csv.gz"}),
        ("kuairand", {"log_standard_4_08.csv", SEQUENCES}),
        ("movielens", {"ratings.csv"}),
    ],
)
def test_only_what_the_source_reads_is_fetched(upload, source, fetched):
    others = {"README.md", "users.csv.bak", "deep/users.csv", "users.parquet/users.csv"}
    others |= {"impressions/deep/a.parquet", "searches/b.txt"}
    every = {"users.csv", "impressions.parquet", "impressions/a.parquet", "searches/b.csv.gz"}
    every |= {"log_standard_4_08.csv", "ratings.csv", SEQUENCES}
    with local_log(upload(dict.fromkeys(others | every, b"x")), source) as folder:
        assert names(folder) == fetched


def test_a_large_file_arrives_whole(upload):
    content = bytes(range(256)) * 80_000  # more than one request
    with local_log(upload({"users.parquet": content}), "own") as folder:
        assert (folder / "users.parquet").read_bytes() == content


# -- What can go wrong -----------------------------------------------------------------------------


def ingest_at(url, run, events, source="own"):
    with local_log(url, source) as folder:
        run(folder, events, source)


def test_an_error_in_a_file_names_the_object(log, run, upload, tmp_path):
    url = upload(log.write(tmp_path / "data"))
    upload({"users.csv": b""})
    with pytest.raises(InputError, match=f"^The file {url}/users.csv is empty; export it again.$"):
        ingest_at(url, run, tmp_path / "events")
    with pytest.raises(InputError, match=f"^The folder {url} has no table impressions; add ratings"):
        ingest_at(url, run, tmp_path / "events", "movielens")
    with pytest.raises(InputError, match="There is no source 'tiktok'; give one of own"):
        ingest_at(url, run, tmp_path / "events", "tiktok")
    assert not (tmp_path / "events").exists()


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        ("{}/nowhere", r"^There is no folder s3://\S+/nowhere; give the one that holds the log's files.$"),
        (
            "s3://nowhere/log",
            r"^The log s3://nowhere/log cannot be used .*bucket does not exist.*variables",
        ),
    ],
)
def test_what_is_not_there_is_named(upload, place, sentence):
    url = upload({"users.csv": b"user_id\n1\n"})
    with pytest.raises(InputError, match=sentence), local_log(place.format(url), "own"):
        pass


@pytest.mark.parametrize("url", ["s3://", "s3:///log", "gs://bucket", "s3://bucket/log?region=here"])
def test_a_location_of_another_kind_is_refused(url):
    with (
        pytest.raises(InputError, match=r"is no log; give the path of a folder or s3://bucket/prefix"),
        local_log(url, "own"),
    ):
        pass


@pytest.mark.parametrize(
    "url", ["s3://key:hidden@bucket/log", "s3://key:hid/den@bucket", "s3://hidden@bucket"]
)
def test_a_key_in_the_location_is_refused_and_not_repeated(url):
    with pytest.raises(InputError, match="give s3://bucket/prefix alone") as seen, local_log(url, "own"):
        pass
    assert "hid" not in str(seen.value)


def test_a_server_that_is_not_there_is_named(s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    sentence = r"^The log s3://\S+ cannot be used .*[Cc]onnect"
    with pytest.raises(InputError, match=sentence) as seen, local_log(s3, "own"):
        pass
    assert "\n" not in str(seen.value)


def test_a_log_that_may_not_be_read_is_named_without_the_key(s3_server, upload, monkeypatch):
    url = upload({"users.csv": b"user_id\n1\n"})
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    sentence = r"^The log s3://\S+ cannot be used .*Access Key"
    ask_for_keys(s3_server, after_requests=0)
    try:
        with pytest.raises(InputError, match=sentence) as seen, local_log(url, "own"):
            pass
    finally:
        ask_for_keys(s3_server, after_requests="inf")
    assert "hidden" not in str(seen.value)
    assert "\n" not in str(seen.value)


def ask_for_keys(server, *, after_requests):
    """Let the server refuse keys it does not know."""
    body = str(after_requests).encode()
    request = urllib.request.Request(f"{server}/moto-api/reset-auth", body, {"Content-Type": "text/plain"})
    urllib.request.urlopen(request).close()


@pytest.mark.parametrize("change", ["longer", "gone"])
def test_a_file_that_changes_while_it_is_fetched_is_refused(upload, s3, monkeypatch, change):
    url = upload({"users.csv": b"user_id\n1\n", "videos.csv": b"video_id\n1\n"})
    room = shutil.disk_usage

    def changed(folder):  # once the files are listed
        files, root = FileSystem.from_uri(s3)
        files.delete_file(f"{root}/users.csv") if change == "gone" else upload(
            {"users.csv": b"user_id\n1\n2\n"}
        )
        return room(folder)

    monkeypatch.setattr("watchrank.ingestion.location.shutil.disk_usage", changed)
    with (
        pytest.raises(InputError, match=r"^The file s3://\S+/users.csv changed while it was fetched; start"),
        local_log(url, "own"),
    ):
        pass


def test_a_log_that_the_disk_cannot_hold_is_not_fetched(upload, monkeypatch):
    url = upload({"users.csv": b"user_id\n", "videos.csv": b"video_id\n"})
    usage = namedtuple("usage", "free")(free=15)
    monkeypatch.setattr("watchrank.ingestion.location.shutil.disk_usage", lambda folder: usage)
    sentence = r"has 0.0 GB, and /\S+ has room for 0.0; let TMPDIR name"
    with pytest.raises(InputError, match=sentence), local_log(url, "own"):
        pass
