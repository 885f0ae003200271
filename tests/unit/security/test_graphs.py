"""Graphs and configurations that must not reach a server, and that nothing opens them before."""

import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from watchrank.config import DeploymentSettings, ExportSettings
from watchrank.deployment import model_repository
from watchrank.deployment.deploy import deploy
from watchrank.errors import DeploymentError
from watchrank.evaluation.champion import ask_champion
from watchrank.export.release import refresh_release
from watchrank.graphs import check_graph, checked
from watchrank.releases import checksums

NUMBER = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])
ANSWER = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])
CONFIG = 'name: "double" backend: "onnxruntime" max_batch_size: 8'


def model(nodes=None, weights=(), opset=20, ir_version=10, imports=()):
    nodes = nodes or [helper.make_node("Add", ["x", "x"], ["y"])]
    graph = helper.make_graph(nodes, "graph", [NUMBER], [ANSWER], list(weights))
    opsets = [helper.make_opsetid("", opset), *imports]
    return helper.make_model(graph, ir_version=ir_version, opset_imports=opsets)


def elsewhere(location):
    tensor = numpy_helper.from_array(np.zeros(2, np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def within_a_branch(tensor):
    """A graph whose weights lie in a graph inside of it."""
    constant = helper.make_node("Constant", [], ["w"], value=tensor)
    branch = helper.make_graph([constant], "branch", [], [helper.make_tensor_value_info("w", 1, [2])])
    condition = helper.make_node(
        "Constant", [], ["c"], value=helper.make_tensor("c", TensorProto.BOOL, [], [1])
    )
    both = helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch)
    return model([condition, both, helper.make_node("Add", ["x", "z"], ["y"])])


ADDED = [helper.make_node("Add", ["x", "w"], ["y"])]
CUSTOM = [helper.make_node("Run", ["x"], ["y"], domain="com.example")]
BAD = {
    "weights above the release": (model(ADDED, [elsewhere("../../etc/passwd")]), "weights in another file"),
    "weights beside it": (model(ADDED, [elsewhere("model.onnx.data")]), "weights in another file"),
    "weights in a branch": (within_a_branch(elsewhere("/etc/passwd")), "weights in another file"),
    "an operator of a library": (
        model(CUSTOM, imports=[helper.make_opsetid("com.example", 1)]),
        "operators of the domain 'com.example'",
    ),
    "an operator of no import": (model(CUSTOM), "onnx.checker says"),
    "an operator that is none": (model([helper.make_node("Exec", ["x"], ["y"])]), "onnx.checker says"),
    "a newer opset": (model(opset=22), "newer than Triton 24.10 reads"),
    "a newer IR": (model(ir_version=11), "newer than Triton 24.10 reads"),
    "an input that is not there": (model([helper.make_node("Add", ["x", "z"], ["y"])]), "onnx.checker says"),
}


@pytest.mark.parametrize(("graph", "reason"), BAD.values(), ids=BAD)
def test_a_bad_graph_is_refused(tmp_path, graph, reason):
    (tmp_path / "model.onnx").write_bytes(graph.SerializeToString())
    with pytest.raises(
        DeploymentError, match=f"model.onnx must not be loaded: .*{reason}.*export it again"
    ) as told:
        check_graph(tmp_path / "model.onnx")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "content", [b"", b"no graph", b"ORTM", model().SerializeToString()[:40], b"\x80\x04]."]
)
def test_what_is_no_whole_graph_is_refused(tmp_path, content):
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(DeploymentError, match=r"must not be loaded: (it is no ONNX file|onnx\.checker says)"):
        check_graph(tmp_path / "model.onnx")


def test_a_graph_is_refused_from_the_set_size_on(tmp_path):
    graph = tmp_path / "model.onnx"
    graph.write_bytes(model().SerializeToString())
    size = graph.stat().st_size
    check_graph(graph, size)
    with pytest.raises(
        DeploymentError, match=rf"{size} bytes, more than the {size - 1} of deployment\.max_graph"
    ):
        check_graph(graph, size - 1)


def make_release(folder, graph=None, config=CONFIG):
    content = (graph or model()).SerializeToString()
    (folder / "double").mkdir(parents=True)
    (folder / "double" / "model.onnx").write_bytes(content)
    (folder / "double" / "config.pbtxt").write_text(config)
    (folder / "golden.json").write_text('{"tolerance": 1e-4, "requests": []}')
    manifest = {"release": 1, "endpoints": ["double"], "files": checksums(folder)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def bad(tmp_path):
    """A release whose checksums hold, and whose graph must not be loaded."""
    return make_release(tmp_path / "bad", BAD["weights above the release"][0])


def test_a_whole_release_may_be_loaded_and_an_exported_one_too(tmp_path, released):
    assert checked(make_release(tmp_path / "release"))["release"] == 1
    assert checked(released)["endpoints"]


def test_a_graph_that_was_exchanged_is_refused_before_it_is_read(tmp_path, monkeypatch):
    release = make_release(tmp_path / "release")
    (release / "double" / "model.onnx").write_bytes(model(opset=21).SerializeToString())
    monkeypatch.setattr(onnx, "load", None)
    with pytest.raises(DeploymentError, match=r"damaged: double/model.onnx is missing or not the file"):
        checked(release)


CHANGES = {
    "missing": lambda graph: graph.unlink(),
    "another": lambda graph: graph.write_bytes(b"x"),
    "one more": lambda graph: graph.with_name("more.onnx").write_bytes(b"x"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_files_that_are_not_those_of_the_manifest_are_refused(tmp_path, change):
    release = make_release(tmp_path / "release")
    change(release / "double" / "model.onnx")
    with pytest.raises(
        DeploymentError, match=r"damaged: double/(model|more).onnx is missing or not the file"
    ):
        checked(release)


def test_a_bad_release_is_not_deployed_and_no_server_hears_of_it(bad, tmp_path):
    settings = DeploymentSettings(grpc_url="127.0.0.1:1")
    with pytest.raises(DeploymentError, match="must not be loaded"):
        deploy(bad, tmp_path / "repository", settings)
    small = settings.model_copy(update={"max_graph_bytes": 10})
    with pytest.raises(DeploymentError, match="more than the 10 of"):
        deploy(make_release(tmp_path / "release"), tmp_path / "repository", small)
    assert not (tmp_path / "repository").exists()


def test_a_bad_champion_is_not_asked(bad):
    found = ask_champion(bad, None)
    assert not found.answers
    assert "must not be loaded" in found.notes[0]


def test_a_bad_release_is_not_refreshed(released, tmp_path):
    release = shutil.copytree(released, tmp_path / "bad")
    with (release / "ranking" / "model.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(DeploymentError, match=r"damaged: ranking/model.onnx"):
        refresh_release(release, None, tmp_path / "releases", ExportSettings())
    assert not (tmp_path / "releases").exists()


# -- What a release asks Triton for ----------------------------------------------------------------


ASKED = {
    "a script": (CONFIG.replace("onnxruntime", "python"), "the backend 'python'"),
    "another platform": (
        CONFIG.replace('backend: "onnxruntime"', 'platform: "onnxruntime_onnx"'),
        "the backend 'onnxruntime_onnx'",
    ),
    "a library": (f'{CONFIG} model_operations {{ op_library_filename: "/tmp/x.so" }}', "model_operations"),
    "an agent": (f'{CONFIG} model_repository_agents {{ agents {{ name: "x" }} }}', "model_repository_agents"),
    "another file": (f'{CONFIG} default_model_filename: "../../x"', "default_model_filename"),
    "an environment": (
        f'{CONFIG} parameters {{ key: "EXECUTION_ENV_PATH" value {{ string_value: "/tmp" }} }}',
        "EXECUTION_ENV_PATH",
    ),
    "a model of another release": (
        'name: "double" platform: "ensemble" ensemble_scheduling { step { model_name: "../../x" } }',
        "../../x",
    ),
}


@pytest.mark.parametrize(("config", "asked"), ASKED.values(), ids=ASKED)
def test_a_configuration_that_asks_for_more_is_not_published(tmp_path, config, asked):
    release, repository = make_release(tmp_path / "release", config=config), tmp_path / "repository"
    with pytest.raises(
        DeploymentError, match=r"double/config.pbtxt must not be loaded: it asks for "
    ) as told:
        model_repository.publish(release, 1, repository)
    assert f"asks for {asked}, which" in str(told.value)
    assert not repository.exists()


def test_exported_configurations_ask_for_no_more(released, tmp_path):
    model_repository.publish(released, 1, tmp_path / "repository")
    assert model_repository.releases(tmp_path / "repository") == [1]


# -- What the local server starts with -------------------------------------------------------------


def test_a_server_does_not_start_with_a_graph_that_is_bad_or_not_of_its_release(tmp_path):
    releases, repository = tmp_path / "releases", tmp_path / "repository"
    release = make_release(releases / "000001")
    model_repository.publish(release, 1, repository)
    model_repository.check(repository, [releases])
    graph = repository / "double_000001" / "1" / "model.onnx"
    graph.write_bytes(model(opset=21).SerializeToString())
    model_repository.check(repository, [tmp_path / "none"])
    with pytest.raises(DeploymentError, match=r"double_000001/1/model.onnx is not the graph of its release"):
        model_repository.check(repository, [tmp_path / "none", releases])
    graph.write_bytes(BAD["weights beside it"][0].SerializeToString())
    with pytest.raises(DeploymentError, match="must not be loaded"):
        model_repository.check(repository, [tmp_path / "none"])
