import itertools

import numpy as np
import pytest

from watchrank.datasets.columns import ColumnWriter, read_columns

EMPTY = {"id": np.empty(0, np.int64), "ok": np.empty(0, np.bool_), "list": np.empty((0, 3), np.float32)}


def part(start: int, stop: int) -> dict[str, np.ndarray]:
    ids = np.arange(start, stop)
    return {"id": ids, "ok": ids % 2 == 0, "list": ids[:, None] + np.array([0.0, 0.25, 0.5])}


def write(folder, bounds: list[int]) -> ColumnWriter:
    with ColumnWriter(folder, EMPTY) as writer:
        for start, stop in itertools.pairwise(bounds):
            writer.append(part(start, stop))
    return writer


def test_pieces_read_back_as_one_memory_mapped_table(tmp_path):
    writer = write(tmp_path / "t", [0, 4, 5, 123_456])
    columns = read_columns(tmp_path / "t")
    whole = part(0, 123_456)
    assert writer.rows == 123_456
    assert columns.keys() == EMPTY.keys()
    for name, column in columns.items():
        assert isinstance(column.base, np.memmap), "the column stays on disk until it is read"
        assert (column.dtype, column.shape[1:]) == (EMPTY[name].dtype, EMPTY[name].shape[1:])
        assert np.array_equal(column, whole[name].astype(EMPTY[name].dtype))


def test_no_rows_read_back_as_no_rows(tmp_path):
    write(tmp_path / "t", [0])
    assert {name: column.shape for name, column in read_columns(tmp_path / "t").items()} == {
        "id": (0,),
        "ok": (0,),
        "list": (0, 3),
    }


def test_the_checksum_tells_tables_apart(tmp_path):
    first, same, other = (
        write(tmp_path / name, bounds).checksum
        for name, bounds in {"a": [0, 9], "b": [0, 9], "c": [1, 10]}.items()
    )
    assert first == same != other


def test_columns_of_different_lengths_are_refused(tmp_path):
    with ColumnWriter(tmp_path / "t", EMPTY) as writer, pytest.raises(ValueError, match="unpack"):
        writer.append(part(0, 3) | {"id": np.arange(2)})
