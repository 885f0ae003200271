"""From events to features: the tables that Feast stores, one value of a column per entity and time."""

from watchrank.features.build import build_features

__all__ = ["build_features"]
