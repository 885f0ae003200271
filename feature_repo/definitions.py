"""Feast definitions: the tables of `watchrank.schema.FEATURE_TABLES`, as feature views and services.

`WATCHRANK_FEATURES` is the folder, or the `s3://` prefix, that `watchrank features` wrote. There is no
time to live: it drops rows offline and is not enforced online.
"""

import os

from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.data_format import ParquetFormat
from feast.types import Array, FeastType, Float32, Int64

from watchrank.schema import (
    CREATED_TIMESTAMP,
    EVENT_TIMESTAMP,
    USER_ACTIVITY,
    USER_PROFILE,
    USER_SEARCH,
    USER_STATISTICS,
    VIDEO_PROFILE,
    VIDEO_STATISTICS,
    Dtype,
    Table,
)

FEATURES = os.environ["WATCHRANK_FEATURES"].rstrip("/")
TYPES: dict[Dtype, FeastType] = {
    "int64": Int64,
    "float32": Float32,
    "list<int64>": Array(Int64),
    "list<float32>": Array(Float32),
}


def view(table: Table, entity: Entity, files: str) -> FeatureView:
    """Return the feature view of a table that lies in `files` below the features' folder."""
    return FeatureView(
        name=table.name,
        entities=[entity],
        schema=[
            Field(name=entity.join_key, dtype=Int64),
            *(Field(name=c.name, dtype=TYPES[c.dtype], description=c.description) for c in table.columns),
        ],
        source=FileSource(
            name=table.name,
            path=f"{FEATURES}/{files}",
            file_format=ParquetFormat(),
            timestamp_field=EVENT_TIMESTAMP,
            created_timestamp_column=CREATED_TIMESTAMP,
        ),
    )


user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
video = Entity(name="video", join_keys=["video_id"], value_type=ValueType.INT64)

user_profile = view(USER_PROFILE, user, "user_profile.parquet")
user_activity = view(USER_ACTIVITY, user, "user_activity/*/*.parquet")
user_search = view(USER_SEARCH, user, "user_search/*/*.parquet")
user_statistics = view(USER_STATISTICS, user, "user_statistics/*/*.parquet")
video_profile = view(VIDEO_PROFILE, video, "video_profile.parquet")
video_statistics = view(VIDEO_STATISTICS, video, "video_statistics/*/*.parquet")

candidate_generation = FeatureService(name="candidate_generation", features=[user_profile, user_activity])
text_match = FeatureService(name="text_match", features=[user_search])
ranking = FeatureService(
    name="ranking",
    features=[user_profile, user_activity, user_statistics, video_profile, video_statistics],
)
