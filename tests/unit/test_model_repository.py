"""The same model repository in a folder and on a real server of the S3 protocol."""

from functools import partial
from itertools import count

import pytest
from pyarrow.fs import FileSelector, FileSystem

from watchrank.deployment import model_repository as store
from watchrank.errors import DeploymentError, InputError
from watchrank.export.triton_config import Step, ensemble_config, read_config, triton_config
from watchrank.object_storage import ObjectStore
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


@pytest.fixture(params=["folder", "s3"])
def repository(request, tmp_path):
    return str(tmp_path / "repository") if request.param == "folder" else request.getfixturevalue("s3")


def files_at(repository):
    return FileSystem.from_uri(repository if "://" in repository else f"file://{repository}")


def paths(repository):
    files, root = files_at(repository)
    found = files.get_file_info(FileSelector(root, allow_not_found=True, recursive=True))
    return {info.path.removeprefix(f"{root}/") for info in found}


def read(repository, name):
    files, root = files_at(repository)
    with files.open_input_stream(f"{root}/{name}") as source:
        return source.read()


def config(repository, model):
    return read_config(read(repository, f"{model}/config.pbtxt").decode())


class Killed(BaseException):
    """In the place of SIGKILL."""


class Steps:
    """Lets what changes a store be done so many times; then the process is taken to be killed."""

    def __init__(self, monkeypatch, left):
        self.left = left
        for name in ("write", "replace", "make_folder", "remove", "remove_folder"):
            monkeypatch.setattr(ObjectStore, name, self._counted(getattr(ObjectStore, name)))

    def _counted(self, function):
        def call(*arguments):
            if self.left == 0:
                raise Killed
            self.left -= 1
            return function(*arguments)

        return call


def test_a_release_is_published_under_its_number(repository, release):
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
def test_an_endpoint_points_to_one_release_and_has_its_tensors(repository, release, endpoint):
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


def test_publishing_again_changes_nothing_and_goes_on_where_it_stopped(repository, release, monkeypatch):
    store.publish(release, 7, repository)
    whole = paths(repository)
    store.write_endpoint(repository, "pair_000007", None)
    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "write", None)  # the graph is not written again
        store.publish(release, 7, repository)
    assert paths(repository) == whole


def test_another_release_of_the_same_number_is_refused(repository, release):
    store.publish(release, 7, repository)
    (release / "double" / "model.onnx").write_bytes(b"others")
    with pytest.raises(DeploymentError, match="another release of the same number"):
        store.publish(release, 7, repository)
    assert read(repository, "double_000007/1/model.onnx") == b"weights"


def test_a_configuration_that_does_not_parse_publishes_nothing(repository, release):
    (release / "pair" / "config.pbtxt").write_text("max_batch_size: many")
    with pytest.raises(DeploymentError, match=r"pair/config.pbtxt is no configuration of Triton"):
        store.publish(release, 7, repository)
    assert paths(repository) == set()


def test_removing_a_release_leaves_the_others_and_the_endpoints(repository, release):
    store.publish(release, 7, repository)
    store.point("pair", 7, repository)
    before = paths(repository)
    store.publish(release, 12, repository)
    store.remove(repository, 12)
    assert paths(repository) == before


def test_an_endpoint_can_be_put_back(repository, release):
    store.publish(release, 7, repository)
    store.point("pair", 7, repository)
    text = store.read_endpoint(repository, "pair")
    store.write_endpoint(repository, "pair", None)
    assert store.read_endpoint(repository, "pair") is None
    assert not any(path.startswith("pair/") for path in paths(repository))
    store.write_endpoint(repository, "pair", text)
    assert store.serving(repository, "pair") == 7


def test_a_model_is_there_as_a_whole_or_not_wherever_publishing_and_removing_are_killed(
    repository, release, monkeypatch
):
    store.publish(release, 6, repository)
    store.point("pair", 6, repository)
    before = paths(repository) - {".lock"}
    publish, remove = partial(store.publish, release, 7, repository), partial(store.remove, repository, 7)
    for undo, change in ((remove, publish), (publish, remove)):
        for steps in count():
            undo()
            with monkeypatch.context() as patch:
                Steps(patch, steps)
                try:
                    change()
                    break
                except Killed:
                    pass
            for name in store.models_of(repository, 7):
                assert config(repository, name).name == name
                assert name != "double_000007" or read(repository, f"{name}/1/model.onnx") == b"weights"
            with store.held(repository):
                left = paths(repository) - before - {".lock"}
            assert {path.split("/")[0] for path in left} == {*store.models_of(repository, 7)}
        assert steps >= 4
    assert paths(repository) - {".lock"} == before


def test_an_address_of_another_kind_is_refused(release):
    with pytest.raises(InputError, match=r"gs://bucket is no model repository; give the path of a folder or"):
        store.publish(release, 7, "gs://bucket")
