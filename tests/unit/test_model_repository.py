import pytest

from watchrank.deployment import model_repository as store
from watchrank.errors import DeploymentError
from watchrank.export.triton_config import Step, ensemble_config, read_config, triton_config
from watchrank.schema import Tensor

NUMBER = Tensor(name="number", dtype="float32", dims=(1,), description="any")
ANSWER = Tensor(name="answer", dtype="float32", dims=(1,), description="any")


@pytest.fixture
def release(tmp_path):
    """A release of one model and an ensemble of it."""
    folder = tmp_path / "release"
    for model in ("double", "pair"):
        (folder / model).mkdir(parents=True)
    (folder / "double" / "model.onnx").write_bytes(b"weights")
    single = triton_config("double", [NUMBER], [ANSWER], max_batch_size=8)
    step = Step(model="double", inputs={"number": "number"}, outputs={"answer": "answer"})
    (folder / "double" / "config.pbtxt").write_text(single)
    (folder / "pair" / "config.pbtxt").write_text(
        ensemble_config("pair", [NUMBER], [ANSWER], [step], max_batch_size=8)
    )
    return folder


def paths(repository):
    return {path.relative_to(repository).as_posix() for path in repository.rglob("*")}


def config(repository, model):
    return read_config((repository / model / "config.pbtxt").read_text())


def test_a_release_is_published_under_its_number(tmp_path, release):
    repository = tmp_path / "repository"
    store.publish(release, 7, repository)
    assert paths(repository) == {
        "double_000007",
        "double_000007/config.pbtxt",
        "double_000007/1",
        "double_000007/1/model.onnx",
        "pair_000007",
        "pair_000007/config.pbtxt",
        "pair_000007/1",
    }
    assert config(repository, "double_000007").name == "double_000007"
    ensemble = config(repository, "pair_000007")
    assert [step.model_name for step in ensemble.ensemble_scheduling.step] == ["double_000007"]
    assert store.releases(repository) == [7]
    assert store.endpoints(repository) == []


@pytest.mark.parametrize("endpoint", ["double", "pair"])
def test_an_endpoint_points_to_one_release_and_has_its_tensors(tmp_path, release, endpoint):
    repository = tmp_path / "repository"
    for number in (7, 12):
        store.publish(release, number, repository)
    assert store.serving(repository, endpoint) is None
    for number in (12, 7):
        store.point(endpoint, number, repository)
        assert store.serving(repository, endpoint) == number
    served, target = config(repository, endpoint), config(repository, f"{endpoint}_000007")
    assert (served.name, served.platform) == (endpoint, "ensemble")
    assert (list(served.input), list(served.output)) == (list(target.input), list(target.output))
    assert served.max_batch_size == 8
    assert store.endpoints(repository) == [endpoint]
    assert store.releases(repository) == [7, 12]


def test_publishing_again_changes_nothing_and_goes_on_where_it_stopped(tmp_path, release):
    repository = tmp_path / "repository"
    store.publish(release, 7, repository)
    whole = paths(repository)
    written = (repository / "double_000007" / "config.pbtxt").stat().st_mtime_ns
    store.write_endpoint(repository, "pair_000007", None)
    store.publish(release, 7, repository)
    assert paths(repository) == whole
    assert (repository / "double_000007" / "config.pbtxt").stat().st_mtime_ns == written


def test_another_release_of_the_same_number_is_refused(tmp_path, release):
    repository = tmp_path / "repository"
    store.publish(release, 7, repository)
    (release / "double" / "model.onnx").write_bytes(b"others")
    with pytest.raises(DeploymentError, match="another release of the same number"):
        store.publish(release, 7, repository)
    assert (repository / "double_000007" / "1" / "model.onnx").read_bytes() == b"weights"


def test_a_configuration_that_does_not_parse_publishes_nothing(tmp_path, release):
    (release / "pair" / "config.pbtxt").write_text("max_batch_size: many")
    with pytest.raises(DeploymentError, match=r"pair/config.pbtxt is no configuration of Triton"):
        store.publish(release, 7, tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


def test_removing_a_release_leaves_the_others_and_the_endpoints(tmp_path, release):
    repository = tmp_path / "repository"
    store.publish(release, 7, repository)
    store.point("pair", 7, repository)
    before = paths(repository)
    store.publish(release, 12, repository)
    store.remove(repository, 12)
    assert paths(repository) == before


def test_an_endpoint_can_be_put_back(tmp_path, release):
    repository = tmp_path / "repository"
    store.publish(release, 7, repository)
    store.point("pair", 7, repository)
    text = store.read_endpoint(repository, "pair")
    store.write_endpoint(repository, "pair", None)
    assert store.read_endpoint(repository, "pair") is None
    assert "pair" not in paths(repository)
    store.write_endpoint(repository, "pair", text)
    assert store.serving(repository, "pair") == 7
