"""The input layer of the rankers: raw features to one vector a candidate.

Covington et al. 2016, section 4.1 and figure 7. Everything that stands between a raw feature (ids,
seconds, lists of ids and times) and the network happens here, inside the exported graph: vocabulary
lookup, history pooling, user x video crosses, quantile normalisation. Training and serving cannot differ.

Shapes: B requests, K candidates a request, L places of a history, D width of an embedding.
Request and user features are [B, 1] or [B, L], video features are [B, K].
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from watchrank.config import RankingSettings
from watchrank.models.lookup import IdEmbedding, Vocabulary
from watchrank.models.quantiles import QuantileNormaliser, Unnormalised
from watchrank.schema import STATISTICS_DAYS

Features = dict[str, Tensor]

NEVER = torch.nan

ID_DOMAINS: dict[str, tuple[str, ...]] = {
    "video": ("video_id", "watched_video_ids"),
    "channel": ("channel_id", "watched_channel_ids"),
    "language": ("user_language", "video_language"),
    "category": ("category",),
    "surface": ("surface",),
    "country": ("country",),
    "device": ("device",),
    "gender": ("gender",),
    "source": ("candidate_source",),
}
"""Features whose ids share one vocabulary and one embedding table."""

POOLED = frozenset({"watched_video_ids", "watched_channel_ids"})
"""Lists of ids: the network is given the mean of their embeddings."""

NEEDED = frozenset({"video_id", "now"})
"""What no configuration can leave out."""

DROPPED = frozenset({"video_id", "channel_id", "candidate_source"})
"""Now and then trained as unknown, so that the zero vector stands for an average new one."""


def seconds_between(later: Tensor, earlier: Tensor) -> Tensor:
    """Return later - earlier in float32 seconds; NaN where either time is unknown (negative)."""
    known = (later >= 0) & (earlier >= 0)
    return torch.where(known, (later - earlier).float(), NEVER)


def _same_channel(x: Features) -> Tensor:
    """Which of the user's last watches were of the candidate's channel [B, K, L]."""
    channel = x["channel_id"].unsqueeze(2)
    return (x["watched_channel_ids"].unsqueeze(1) == channel) & (channel >= 0)


def seconds_since_channel_watch(x: Features) -> Tensor:
    """Time since the user last watched the candidate's channel [B, K]; NaN if never."""
    last = torch.where(_same_channel(x), x["watched_times"].unsqueeze(1), -1).amax(-1)  # [B, K]
    return seconds_between(x["now"], last)


def channel_watches(x: Features) -> Tensor:
    """How many of the user's last watches were of the candidate's channel [B, K]."""
    return _same_channel(x).float().sum(-1)


def watches(x: Features) -> Tensor:
    """How many last watches the user has [B, 1]; at most as many as the list holds."""
    return (x["watched_video_ids"] >= 0).sum(-1, keepdim=True).float()


def channel_share(x: Features) -> Tensor:
    """Share of the candidate's channel in the user's last watches [B, K]; NaN if there are none."""
    total = watches(x)
    return torch.where(total > 0, channel_watches(x) / total.clamp(min=1), NEVER)


def previous_impressions(x: Features) -> Tensor:
    """How often the candidate was among the last videos shown to the user [B, K]."""
    shown = x["impression_video_ids"].unsqueeze(1) == x["video_id"].unsqueeze(2)
    return shown.float().sum(-1)


def mean_watched_seconds(x: Features) -> Tensor:
    """Mean seconds of the user's last watches [B, 1]; NaN if there are none."""
    watched = x["watched_video_ids"] >= 0
    count = watched.sum(-1, keepdim=True)
    total = torch.where(watched, x["watched_seconds"], 0.0).sum(-1, keepdim=True)
    return torch.where(count > 0, total / count.clamp(min=1), NEVER)


def same_language(x: Features) -> Tensor:
    """Whether the user's and the candidate's languages are the same [B, K]; NaN if one is unknown."""
    known = (x["user_language"] >= 0) & (x["video_language"] >= 0)
    return torch.where(known, (x["user_language"] == x["video_language"]).float(), NEVER)


def count(name: str) -> Callable[[Features], Tensor]:
    """Make a feature of the count or number called `name`."""
    return lambda x: x[name].float()


def id_features(absent: frozenset[str]) -> dict[str, list[str]]:
    """Return the id features of each domain, without the absent ones and the domains left empty."""
    left = {domain: [n for n in names if n not in absent] for domain, names in ID_DOMAINS.items()}
    return {domain: names for domain, names in left.items() if names}


PRIOR_IMPRESSIONS = 20.0
"""A rate of few impressions is drawn to the overall rate as if there were this many more of them."""

CONTINUOUS: dict[str, tuple[tuple[str, ...], Callable[[Features], Tensor]]] = {
    "seconds_since_channel_watch": (
        ("now", "channel_id", "watched_channel_ids", "watched_times"),
        seconds_since_channel_watch,
    ),
    "channel_watches": (("channel_id", "watched_channel_ids"), channel_watches),
    "channel_share": (("channel_id", "watched_channel_ids", "watched_video_ids"), channel_share),
    "watches": (("watched_video_ids",), watches),
    "previous_impressions": (("video_id", "impression_video_ids"), previous_impressions),
    "seconds_since_last_watch": (
        ("now", "watched_times"),
        lambda x: seconds_between(x["now"], x["watched_times"].amax(-1, keepdim=True)),
    ),
    "mean_watched_seconds": (("watched_video_ids", "watched_seconds"), mean_watched_seconds),
    "same_language": (("user_language", "video_language"), same_language),
    "video_age_seconds": (("now", "upload_time"), lambda x: seconds_between(x["now"], x["upload_time"])),
    "account_age_seconds": (("now", "signup_time"), lambda x: seconds_between(x["now"], x["signup_time"])),
    "duration_seconds": (("duration_seconds",), count("duration_seconds")),
    "age": (("age",), count("age")),
}
RATES: dict[str, tuple[str, str]] = {}
"""Continuous features that are the ratio of two counts or sums: what happened, and of how many."""

for _window in ("user_{}_7d", *(f"video_{{}}_{days}d" for days in STATISTICS_DAYS)):
    _shown = _window.format("impressions")
    CONTINUOUS[_shown] = ((_shown,), count(_shown))
    RATES[_window.format("click_rate")] = (_window.format("clicks"), _shown)
    RATES[_window.format("watch_rate")] = (_window.format("watch_seconds"), _shown)


class InputLayer(nn.Module):
    """Raw features to one vector [B, K, width] a candidate."""

    overall_rates: Tensor

    def __init__(self, settings: RankingSettings, absent: frozenset[str], keys: dict[str, Tensor]) -> None:
        """Make the layer.

        Args:
            settings: widths and numbers of quantiles.
            absent: features that the source lacks; whatever needs one of them is left out.
            keys: the sorted ids of the vocabulary of each domain in `id_features(absent)`.
        """
        super().__init__()
        self.id_dropout = settings.id_dropout
        self.continuous_names = [n for n, (needs, _) in CONTINUOUS.items() if not absent & set(needs)]
        self.rates = [parts for parts in RATES.values() if not absent & set(parts)]
        self.register_buffer("overall_rates", torch.zeros(len(self.rates)))
        self.id_names = id_features(absent)
        dims = {"video": settings.video_dim, "channel": settings.channel_dim}
        self.embeddings = nn.ModuleDict(
            {
                domain: IdEmbedding(Vocabulary(keys[domain]), dims.get(domain, settings.category_dim))
                for domain in self.id_names
            }
        )
        features = len(self.continuous_names) + len(self.rates)
        self.normaliser = (
            QuantileNormaliser(features, settings.quantiles, powers=settings.powers)
            if settings.normalisation == "quantile"
            else Unnormalised(features)
        )
        self.width = self.normaliser.out_features + sum(
            self._embedding(domain).table.embedding_dim * len(names)
            for domain, names in self.id_names.items()
        )

    @property
    def input_names(self) -> set[str]:
        """The raw features that the layer reads."""
        ids = {name for names in self.id_names.values() for name in names}
        return ids.union(*(CONTINUOUS[name][0] for name in self.continuous_names), *self.rates)

    @property
    def columns(self) -> list[str]:
        """What each of the `width` numbers is, in their order."""
        continuous = [*self.continuous_names, *(f"{total} of {trials}" for total, trials in self.rates)]
        columns = [f"{kind} of {name}" for kind in self.normaliser.kinds for name in continuous]
        for domain, names in self.id_names.items():
            dim = self._embedding(domain).table.embedding_dim
            columns += [f"{name}, {place} of {dim}" for name in names for place in range(dim)]
        return columns

    def fit(self, x: Features) -> None:
        """Store the overall rates and the quantiles of a sample of training impressions."""
        rates = [
            x[total].double().sum() / x[trials].double().sum().clamp(min=1) for total, trials in self.rates
        ]
        self.overall_rates = torch.stack(rates).float()
        self.normaliser.fit(self.continuous(x).flatten(0, 1).numpy())

    def continuous(self, x: Features) -> Tensor:
        """Return the continuous features before normalisation [B, K, F]."""
        values = [CONTINUOUS[name][1](x) for name in self.continuous_names]
        values += [
            (x[total].float() + PRIOR_IMPRESSIONS * overall) / (x[trials].float() + PRIOR_IMPRESSIONS)
            for (total, trials), overall in zip(self.rates, self.overall_rates, strict=True)
        ]
        shape = x["video_id"].shape
        return torch.stack([value.expand(shape) for value in values], -1)

    def forward(self, x: Features) -> Tensor:
        """Return [B, K, width] from raw features [B, 1], [B, L] and [B, K]."""
        candidates = x["video_id"].shape[1]
        parts = [self.normaliser(self.continuous(x))]
        parts += [
            self._embed(domain, name, x[name]).expand(-1, candidates, -1)  # [B, K, D]
            for domain, names in self.id_names.items()
            for name in names
        ]
        return torch.cat(parts, -1)

    def _embed(self, domain: str, name: str, ids: Tensor) -> Tensor:
        """Return [B, 1, D] or [B, K, D] for ids [B, L], [B, 1] or [B, K]."""
        embedding = self._embedding(domain)
        if name in POOLED:
            return embedding.mean(ids).unsqueeze(1)
        vectors: Tensor = embedding(ids)
        if self.training and name in DROPPED:
            vectors = vectors * (torch.rand_like(vectors[..., :1]) >= self.id_dropout)
        return vectors

    def _embedding(self, domain: str) -> IdEmbedding:
        embedding = self.embeddings[domain]
        assert isinstance(embedding, IdEmbedding)
        return embedding
