import pytest

from watchrank.deployment.model_repository import prune, publish, read_config, versions, withdraw


@pytest.fixture
def graph(tmp_path):
    path = tmp_path / "graph.onnx"
    path.write_bytes(b"weights")
    return path


def files(repository):
    return {
        path.relative_to(repository).as_posix(): path.read_bytes()
        for path in repository.rglob("*")
        if path.is_file()
    }


def test_versions_count_up_and_the_configuration_is_the_newest(tmp_path, graph):
    repository = tmp_path / "repository"
    assert versions(repository, "ranking") == []
    assert publish(graph, "old", repository, "ranking") == 1
    assert publish(graph, "new", repository, "ranking") == 2
    assert versions(repository, "ranking") == [1, 2]
    assert files(repository) == {
        "ranking/config.pbtxt": b"new",
        "ranking/1/model.onnx": b"weights",
        "ranking/2/model.onnx": b"weights",
    }


def test_versions_are_counted_as_numbers(tmp_path, graph):
    for _ in range(10):
        publish(graph, "config", tmp_path, "ranking")
    assert publish(graph, "config", tmp_path, "ranking") == 11


def test_a_version_that_cannot_be_written_leaves_all_as_it_was(tmp_path, graph):
    repository = tmp_path / "repository"
    publish(graph, "old", repository, "ranking")
    before = files(repository)
    with pytest.raises(FileNotFoundError):
        publish(tmp_path / "missing.onnx", "new", repository, "ranking")
    assert files(repository) == before
    assert versions(repository, "ranking") == [1]


def test_withdrawing_undoes_publishing(tmp_path, graph):
    repository = tmp_path / "repository"
    publish(graph, "old", repository, "ranking")
    before = files(repository)
    config = read_config(repository, "ranking")
    version = publish(graph, "new", repository, "ranking")
    withdraw(repository, "ranking", version, config)
    assert files(repository) == before


def test_withdrawing_the_first_version_leaves_no_model(tmp_path, graph):
    repository = tmp_path / "repository"
    assert read_config(repository, "ranking") is None
    version = publish(graph, "new", repository, "ranking")
    withdraw(repository, "ranking", version, None)
    assert list(repository.iterdir()) == []


def test_pruning_keeps_the_newest(tmp_path, graph):
    for _ in range(11):
        publish(graph, "config", tmp_path, "ranking")
    assert prune(tmp_path, "ranking", 3) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert versions(tmp_path, "ranking") == [9, 10, 11]
    assert prune(tmp_path, "ranking", 3) == []
