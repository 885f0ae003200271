"""watchrank: a two-stage video recommender that ranks by expected watch time."""

__version__ = "0.1.0"
