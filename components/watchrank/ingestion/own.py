"""The own schema: one folder; a table is a Parquet or CSV file, or a folder of such files."""

from watchrank.ingestion.adapter import Adapter, Feed, same
from watchrank.schema import SOURCE_TABLES

FORMATS = ("parquet", "csv", "csv.gz")

OWN: Adapter = {
    table.name: Feed(
        patterns=(
            *(f"{table.name}.{ending}" for ending in FORMATS),
            *(f"{table.name}/*.{ending}" for ending in FORMATS),
        ),
        fields=same(*table.names),
    )
    for table in SOURCE_TABLES
}
