"""MovieLens' original files (Harper and Konstan 2015, https://grouplens.org/datasets/movielens).

A rating stands for an impression, and a good one for a click. There is no watch time: `watch_seconds` is 0
throughout, so this source fits models of clicks and not the ranking by watch time. Users are those who rate.
Movies have neither a channel nor a time of upload nor a length; those columns are absent.
"""

import ibis.expr.types as ir

from watchrank.ingestion import values
from watchrank.ingestion.adapter import Adapter, Feed, Field

LIKED_RATING = 4
"""A rating of so many stars, of 5, counts as a click: the average rating is 3.5, since people rate what they
have chosen to watch, so 4 is the first that speaks for the movie."""


def _stars(row: ir.Table) -> ir.Value:
    return values.parse(row.rating, "float64")


MOVIELENS: Adapter = {
    "users": Feed(patterns=("ratings.csv",), fields={"user_id": Field(origin="userId")}, distinct=True),
    "videos": Feed(
        patterns=("movies.csv",),
        fields={
            "video_id": Field(origin="movieId"),
            "title": Field(origin="title"),
            "category": Field(
                origin="genres",
                missing=("(no genres listed)",),
                value=lambda row: row.genres.split("|")[0],
            ),
        },
    ),
    "impressions": Feed(
        patterns=("ratings.csv",),
        fields={
            "user_id": Field(origin="userId"),
            "video_id": Field(origin="movieId"),
            "timestamp": Field(origin="timestamp", value=lambda row: values.since_1970(row.timestamp, "s")),
            "clicked": Field(origin="rating", value=lambda row: _stars(row) >= LIKED_RATING),
            "watch_seconds": Field(origin="rating", value=lambda row: _stars(row) * 0),
        },
    ),
}
