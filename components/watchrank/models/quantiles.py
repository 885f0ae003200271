"""Continuous features as quantiles (Covington et al. 2016, section 4.1)."""

import numpy as np
import torch
from torch import Tensor, nn

_TINY = 1e-30


class Unnormalised(nn.Module):
    """The F continuous features as they are, and a flag for a missing (NaN) one: an ablation."""

    kinds = ("value", "missing")

    def __init__(self, features: int) -> None:
        super().__init__()
        self.out_features = len(self.kinds) * features

    def fit(self, values: np.ndarray) -> None:
        """Learn nothing."""

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., 2 F] from x [..., F]."""
        return torch.cat([x.nan_to_num(0.0), x.isnan().to(x.dtype)], -1)


class QuantileNormaliser(nn.Module):
    """Map F continuous features to [0, 1] by their empirical cumulative distribution.

    The distribution is linear between stored quantiles. The network is given x, and with `powers`
    also x squared and the root of x, and a flag for a missing (NaN) value, which counts as 0.
    """

    lower: Tensor
    width: Tensor

    def __init__(self, features: int, quantiles: int, *, powers: bool) -> None:
        super().__init__()
        self.powers = powers
        self.kinds = ("quantile", "square", "root", "missing") if powers else ("quantile", "missing")
        self.out_features = len(self.kinds) * features
        steps = quantiles - 1
        self.register_buffer("lower", torch.arange(steps).expand(features, steps) / steps)
        self.register_buffer("width", torch.full((features, steps), 1 / steps))

    def fit(self, values: np.ndarray) -> None:
        """Store the quantiles of `values` [N, F]; NaN takes no part."""
        steps = np.linspace(0, 1, self.lower.shape[1] + 1)
        edges = np.stack([_quantiles(column, steps) for column in values.T]).astype(np.float32)
        self.lower = torch.from_numpy(edges[:, :-1].copy())
        self.width = torch.from_numpy(np.diff(edges))

    def cumulative(self, x: Tensor) -> Tensor:
        """Return F(x) in [0, 1] for x [..., F]; 0 where x is NaN.

        A value that holds many quantiles, as 0 does in a count, has the share of values up to it.
        """
        known = x.nan_to_num(0.0)
        share = self._by_counting(known) if torch.onnx.is_in_onnx_export() else self._by_searching(known)
        return torch.where(x.isnan(), 0.0, share)

    def _by_counting(self, x: Tensor) -> Tensor:
        """With operators that ONNX has: the quantiles up to x are counted, in float, which sums fastest."""
        features, steps = self.lower.shape
        place = ((x.unsqueeze(-1) >= self.lower).float().sum(-1) - 1).clamp(min=0)
        cell = place.long() + torch.arange(features) * steps
        beyond, width = x - self.lower.flatten()[cell], self.width.flatten()[cell]
        part = torch.where(beyond >= width, 1.0, (beyond / width.clamp(min=_TINY)).clamp(min=0))
        return (place + part) / steps

    def _by_searching(self, x: Tensor) -> Tensor:
        """The same by binary search, which is several times faster in training."""
        flat = x.reshape(-1, x.shape[-1]).T.contiguous()  # [F, N]
        place = (torch.searchsorted(self.lower, flat, right=True) - 1).clamp_(min=0)
        beyond = flat - self.lower.gather(1, place)
        width = self.width.gather(1, place)
        part = torch.where(beyond >= width, 1.0, (beyond / width.clamp(min=_TINY)).clamp(min=0))
        share = (place + part) / self.lower.shape[1]
        return share.T.reshape(x.shape)

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., out_features] from x [..., F]."""
        share = self.cumulative(x)
        missing = x.isnan().to(share.dtype)
        if not self.powers:
            return torch.cat([share, missing], -1)
        return torch.cat([share, share.square(), share.sqrt(), missing], -1)


def _quantiles(column: np.ndarray, steps: np.ndarray) -> np.ndarray:
    known = column[np.isfinite(column)]
    return np.quantile(known, steps) if known.size else steps
