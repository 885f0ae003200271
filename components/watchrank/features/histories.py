"""A user's last items before each snapshot, newest first.

A row of lists takes up to 3 KB, so lists are built last, for the snapshots of one day at a time. A user's
items lie in blocks as long as the list, and a snapshot cuts its list out of one block and the block before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import ibis
import ibis.expr.types as ir

from watchrank.engine import Engine
from watchrank.features.files import files_until
from watchrank.features.log import naive
from watchrank.features.newest import newest_rows
from watchrank.features.text import text_ids
from watchrank.features.times import INSTANT, epoch_seconds
from watchrank.schema import CREATED_TIMESTAMP, EVENT_TIMESTAMP, USER_ACTIVITY

_TYPES = {"list<int64>": "array<int64>", "list<float32>": "array<float32>"}


@dataclass(frozen=True, kw_only=True)
class History:
    """All items of one kind, packed.

    Attributes:
        count: the column of `counts.activity_counts` that says how many items a snapshot follows.
        length: of a list, and of a block.
        lists: the features of `schema.USER_ACTIVITY` that are lists of these items.
        blocks: `user_id`, `block` (from 0), `newest` (the place, among all items of the user, of the first in
            the list, from 0), and the lists: a block's items and those of the block before, newest first.
    """

    count: str
    length: int
    lists: tuple[str, ...]
    blocks: ir.Table


def histories(
    impressions: ir.Table, searches: ir.Table, earlier: ir.Table, before: ir.Table
) -> list[History]:
    """Pack what users were shown, watched (first, of the same time, before the log) and searched for.

    The items of the lists `before` come first.
    """
    shown = impressions.select("user_id", "time", impression_video_ids="video_id", place="video_id")
    clicked = impressions.filter(impressions.clicked)
    in_log = _watched(clicked, clicked.time, clicked.watch_seconds, in_log=True, place=clicked.video_id)
    before_log = _watched(earlier, earlier.bound, ibis.literal(0.0), in_log=False, place=earlier.place)
    words = searches.unnest("tokens", offset="place")
    searched = words.select("user_id", "time", "query", "place", search_token_ids=text_ids(words.tokens))
    return [
        _history("impressions", shown, before, ["place"]),
        _history("clicks", before_log.union(in_log), before, ["in_log", "place"]),
        _history("tokens", searched, before, ["query", "place"]),
    ]


def no_lists(impressions: ir.Table) -> ir.Table:
    """Return the rows of `lists_before` of a log that is read from its start: none."""
    nothing = {column.name: ibis.null(_TYPES[column.dtype]) for column in USER_ACTIVITY.columns}
    return impressions.filter(ibis.literal(False)).select("user_id", "time", **nothing)


def lists_before(con: Engine, features: Path, users: ir.Table, time: datetime) -> ir.Table:
    """Return the lists of some users as a features folder has them at a time that no snapshot strides.

    Returns:
        `user_id`, the instant before as `time`, and the columns of `schema.USER_ACTIVITY`.
    """
    rows = con.read_parquet(files_until(features, USER_ACTIVITY, time))
    newest = rows.filter(rows[EVENT_TIMESTAMP] <= ibis.literal(time, "timestamp('UTC')"))
    newest = newest.semi_join(users, "user_id")
    newest = newest_rows(newest, ["user_id"], [EVENT_TIMESTAMP, CREATED_TIMESTAMP])
    lists = {name: _or_empty(newest[name]) for name in USER_ACTIVITY.names}
    return newest.select("user_id", time=(naive(time) - INSTANT).cast("timestamp"), **lists)


def _watched(
    watches: ir.Table, when: ir.Value, seconds: ir.Value, *, in_log: bool, place: ir.Value
) -> ir.Table:
    return watches.select(
        "user_id",
        "time",
        watched_video_ids="video_id",
        watched_channel_ids="channel_id",
        watched_times=epoch_seconds(when),
        watched_seconds=seconds.cast("float32"),
        in_log=ibis.literal(in_log),
        place=place,
    )


def with_lists(snapshots: ir.Table, packed: Sequence[History]) -> ir.Table:
    """Add to each snapshot the last items before it."""
    for history in packed:
        snapshots = _with_lists(snapshots, history)
    return snapshots


def _history(count: str, items: ir.Table, before: ir.Table, ties: Sequence[str]) -> History:
    """Pack items; those of the same time are ordered by `ties`."""
    lists = [column for column in USER_ACTIVITY.columns if column.name in items.columns]
    names, length = tuple(column.name for column in lists), lists[0].length
    assert length is not None
    items = items.union(_items(before, names, items))
    in_order = ibis.window(group_by="user_id", order_by=["time", *ties])
    items = items.mutate(place=ibis.row_number().over(in_order))
    newest_first = (
        ibis.struct({"age": -items.place, **{name: items[name] for name in names}}).collect().sort()
    )
    blocks = items.group_by("user_id", block=items.place // length).agg(
        newest=items.place.max(), structs=newest_first
    )
    blocks = blocks.select(
        "user_id", "block", "newest", **{name: _pick(blocks.structs, name) for name in names}
    )
    in_turn = ibis.window(group_by="user_id", order_by="block")
    joined = {name: blocks[name].concat(_or_empty(blocks[name].lag().over(in_turn))) for name in names}
    return History(count=count, length=length, lists=names, blocks=blocks.mutate(**joined))


def _items(before: ir.Table, names: Sequence[str], like: ir.Table) -> ir.Table:
    """Return the items of lists, newest first, with the columns of `like`."""
    first, *others = (before[name] for name in names)
    zipped = before.select("user_id", "time", item=first.zip(*others) if others else first)
    rows = zipped.unnest("item", offset="age")
    fields = {name: rows.item[f"f{number}"] for number, name in enumerate(names, 1)} if others else {}
    items = rows.select("user_id", "time", **(fields or {names[0]: rows.item}), place=-rows.age)
    rest = {name: ibis.null(kind) for name, kind in like.schema().items() if name not in items.columns}
    return items.mutate(**rest).select(like.columns).cast(like.schema())


def _with_lists(snapshots: ir.Table, history: History) -> ir.Table:
    keyed = snapshots.mutate(block=(snapshots[history.count] - 1) // history.length)
    joined = keyed.left_join(history.blocks, ["user_id", "block"], rname="{name}_of_block")
    skip = joined.newest + 1 - joined[history.count]
    lists = {name: _or_empty(joined[name][skip : skip + history.length]) for name in history.lists}
    return joined.select(*snapshots.columns, **lists)


def _pick(structs: ir.ArrayValue, name: str) -> ir.ArrayValue:
    return structs.map(lambda item: item[name])


def _or_empty(lists: ir.ArrayValue) -> ir.ArrayValue:
    return lists.fill_null(ibis.literal([], lists.type()))
