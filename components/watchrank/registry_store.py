"""Feast's registry in a file that is replaced as a whole: who reads it meanwhile, or after a kill, gets one.

Feast's own store writes over the file in place.
"""

from datetime import UTC, datetime
from uuid import uuid4

from feast.infra.registry.file import FileRegistryStore
from feast.protos.feast.core.Registry_pb2 import Registry
from google.protobuf.message import DecodeError

from watchrank.errors import InputError
from watchrank.storage import atomic_path


class WholeFileRegistryStore(FileRegistryStore):  # type: ignore[misc]
    """Reads and writes the registry's file; `registry_store_type` names it."""

    def get_registry_proto(self) -> Registry:
        """Return the registry.

        Raises:
            FileNotFoundError: there is none yet.
            InputError: the file is damaged.
        """
        registry = Registry()
        try:
            registry.ParseFromString(self._filepath.read_bytes())
        except DecodeError:
            raise InputError(
                f"The registry {self._filepath} is damaged; delete it and run `watchrank features`."
            ) from None
        return registry

    def _write_registry(self, registry_proto: Registry) -> None:
        registry_proto.version_id = str(uuid4())
        registry_proto.last_updated.FromDatetime(datetime.now(UTC))
        with atomic_path(self._filepath) as fresh:
            fresh.write_bytes(registry_proto.SerializeToString())
