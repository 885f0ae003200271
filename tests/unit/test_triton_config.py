import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from watchrank.export.triton_config import triton_config
from watchrank.schema import RANKING_INPUTS, RANKING_OUTPUTS


def parsed(**changes):
    settings = {"max_batch_size": 64} | changes
    text = triton_config("ranking", RANKING_INPUTS, RANKING_OUTPUTS, **settings)
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def test_it_parses_as_a_model_configuration_with_every_tensor_of_the_schema():
    config = parsed()
    assert (config.name, config.backend, config.max_batch_size) == ("ranking", "onnxruntime", 64)
    assert [tensor.name for tensor in config.input] == [tensor.name for tensor in RANKING_INPUTS]
    assert [tensor.name for tensor in config.output] == ["expected_watch_time"]


@pytest.mark.parametrize(
    ("name", "data_type", "dims"),
    [
        ("now", model_config_pb2.TYPE_INT64, [1]),
        ("age", model_config_pb2.TYPE_FP32, [1]),
        ("watched_video_ids", model_config_pb2.TYPE_INT64, [50]),
        ("watched_seconds", model_config_pb2.TYPE_FP32, [50]),
        ("impression_video_ids", model_config_pb2.TYPE_INT64, [200]),
        ("video_id", model_config_pb2.TYPE_INT64, [-1]),
        ("duration_seconds", model_config_pb2.TYPE_FP32, [-1]),
    ],
)
def test_a_tensor_has_its_dtype_and_its_dims_without_the_batch(name, data_type, dims):
    tensor = next(tensor for tensor in parsed().input if tensor.name == name)
    assert (tensor.data_type, list(tensor.dims)) == (data_type, dims)


def test_the_newest_version_serves_in_batches_on_whatever_device_there_is():
    config = parsed(max_queue_delay_microseconds=500)
    assert config.version_policy.latest.num_versions == 1
    assert config.HasField("dynamic_batching")
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    assert [(group.count, group.kind) for group in config.instance_group] == [
        (1, model_config_pb2.ModelInstanceGroup.KIND_AUTO)
    ]


@pytest.mark.parametrize(("changes", "threads"), [({}, "1"), ({"intra_op_threads": 0}, "0")])
def test_a_run_takes_one_thread_unless_told_otherwise(changes, threads):
    assert parsed(**changes).parameters["intra_op_thread_count"].string_value == threads


def test_only_the_given_inputs_are_declared():
    text = triton_config("ranking", RANKING_INPUTS[:1], RANKING_OUTPUTS, max_batch_size=8)
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    assert [tensor.name for tensor in config.input] == ["now"]


def test_a_batch_below_one_is_refused():
    with pytest.raises(ValueError, match="max_batch_size is 0"):
        parsed(max_batch_size=0)
