"""Feast's registry is whole whenever it is read."""

from types import SimpleNamespace

import pytest
from feast.protos.feast.core.Registry_pb2 import Registry
from feast.repo_config import RegistryConfig

from watchrank.errors import InputError
from watchrank.registry_store import WholeFileRegistryStore


@pytest.fixture
def file(tmp_path):
    return tmp_path / "registry.db"


@pytest.fixture
def store(file):
    store = WholeFileRegistryStore(RegistryConfig(path=str(file)), file.parent)
    store.update_registry_proto(Registry(registry_schema_version="1"))
    return store


def test_what_is_written_is_read(store):
    first = store.get_registry_proto()
    assert first.registry_schema_version == "1"
    store.update_registry_proto(Registry(registry_schema_version="2"))
    second = store.get_registry_proto()
    assert second.registry_schema_version == "2"
    assert second.version_id != first.version_id
    assert second.last_updated.ToMicroseconds() > first.last_updated.ToMicroseconds()


def test_a_write_that_does_not_end_changes_nothing(store, file):
    def fail():
        raise MemoryError

    before = file.read_bytes()
    unwritable = SimpleNamespace(last_updated=Registry().last_updated, SerializeToString=fail)
    with pytest.raises(MemoryError):
        store.update_registry_proto(unwritable)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["registry.db"]


def test_without_a_registry_feast_makes_one(store, file):
    file.unlink()
    with pytest.raises(FileNotFoundError):
        store.get_registry_proto()


def test_a_damaged_registry_is_told(store, file):
    file.write_bytes(b"\xff" + file.read_bytes())
    with pytest.raises(InputError, match=rf"^The registry {file} is damaged; delete it and run"):
        store.get_registry_proto()
