"""Candidate generation.

Covington, Adams, Sargin: Deep Neural Networks for YouTube Recommendations, RecSys 2016, section 3.

A tower of ReLU layers turns what is known of a user into a vector u. Watching is extreme multiclass
classification, P(video i | user) = softmax of v_i . u, with one class a video; v_i are the softmax's
weights. To serve is to find the videos of the largest v_i . u.

Shapes: B users, L places of a history, D width of the vectors, N videos with a class.
"""

import itertools

import torch
from torch import Tensor, nn

from watchrank.config import CandidateSettings
from watchrank.models.inputs import Features
from watchrank.models.lookup import IdEmbedding, Vocabulary

ID_DOMAINS = {
    "video": "watched_video_ids",
    "token": "search_token_ids",
    "language": "user_language",
    "country": "country",
    "device": "device",
    "gender": "gender",
    "logged_in": "logged_in",
}
"""The id feature of each domain; lists are averaged, so that no order and no single search rules."""

NEEDED = frozenset({"watched_video_ids"})
"""What no configuration can leave out: its vocabulary is that of the classes."""

NUMBERS = ("age", "example_age")

OLDEST_AGE = 100.0
"""Years that count as 1."""


def feature_names(absent: frozenset[str]) -> list[str]:
    """Return the features that a tower reads, without the absent ones."""
    return [name for name in (*ID_DOMAINS.values(), *NUMBERS) if name not in absent]


class UserTower(nn.Module):
    """What is known of B users to their vectors [B, D]."""

    def __init__(
        self, settings: CandidateSettings, absent: frozenset[str], keys: dict[str, Tensor], window: float
    ) -> None:
        """Make the tower.

        Args:
            settings: widths and depth.
            absent: features to do without.
            keys: the sorted ids of the vocabulary of each domain whose feature is there.
            window: length of the training window in seconds: the example age that counts as 1.
        """
        super().__init__()
        self.window = window
        self.names = feature_names(absent)
        self.embeddings = nn.ModuleDict(
            {
                domain: IdEmbedding(
                    Vocabulary(keys[domain]), settings.dim if domain == "video" else settings.feature_dim
                )
                for domain, name in ID_DOMAINS.items()
                if name in self.names
            }
        )
        self.dropout = nn.Dropout(settings.dropout)
        self.recent = settings.recent
        width = sum(self.embedding(domain).table.embedding_dim for domain in self.embeddings)
        width += settings.dim * (settings.recent > 0)
        width += 2 * ("age" in self.names) + 3 * ("example_age" in self.names)
        widths = [width, *(settings.dim * 2**level for level in reversed(range(settings.depth)))]
        layers: list[nn.Module] = [] if settings.depth else [nn.Linear(width, settings.dim)]
        for fan_in, fan_out in itertools.pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def embedding(self, domain: str) -> IdEmbedding:
        """Return the table of a domain."""
        found = self.embeddings[domain]
        assert isinstance(found, IdEmbedding)
        return found

    @property
    def columns(self) -> list[str]:
        """What each input of the first layer is, in their order."""
        dims = {domain: self.embedding(domain).table.embedding_dim for domain in self.embeddings}
        dims |= {"recent": dims["video"]} if self.recent else {}
        columns = [f"{name}, {place} of {dim}" for name, dim in dims.items() for place in range(dim)]
        columns += ["age", "age missing"] if "age" in self.names else []
        return columns + (["example age", "square", "root"] if "example_age" in self.names else [])

    def forward(self, x: Features) -> Tensor:
        """Return [B, D] from lists [B, L], ids [B, 1] and numbers [B, 1]."""
        parts = [self.embedding(domain).mean(x[ID_DOMAINS[domain]]) for domain in self.embeddings]
        if self.recent:
            parts.append(self.embedding("video").mean(x["watched_video_ids"][:, : self.recent].contiguous()))
        parts = [self.dropout(torch.cat(parts, -1))]
        if "age" in self.names:
            years = x["age"]
            parts += [(years.nan_to_num(0.0) / OLDEST_AGE).clamp(0, 1), years.isnan().to(years.dtype)]
        if "example_age" in self.names:
            age = (x["example_age"].nan_to_num(0.0) / self.window).clamp(0, 1)
            parts += [age, age.square(), age.sqrt()]
        vector: Tensor = self.layers(torch.cat(parts, -1))
        return vector


class CandidateModel(nn.Module):
    """The tower and the softmax's weights, one row a video of the vocabulary; row 0 is no video."""

    def __init__(self, tower: UserTower, settings: CandidateSettings) -> None:
        super().__init__()
        self.tower = tower
        watched = tower.embedding("video")
        self.weights = watched.table
        if not settings.tied:
            self.weights = nn.Embedding(watched.vocabulary.rows, settings.dim, padding_idx=0)
            nn.init.normal_(self.weights.weight[1:], std=0.01)

    @property
    def vocabulary(self) -> Vocabulary:
        """The videos that have a class."""
        return self.tower.embedding("video").vocabulary

    @property
    def vectors(self) -> Tensor:
        """The videos' vectors [N, D], in the order of the vocabulary's keys."""
        return self.weights.weight[1:]

    def forward(self, x: Features) -> Tensor:
        """Return the users' vectors [B, D]."""
        vector: Tensor = self.tower(x)
        return vector
