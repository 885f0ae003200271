"""Watch-time ranking.

Covington, Adams, Sargin: Deep Neural Networks for YouTube Recommendations, RecSys 2016, section 4.

A stack of ReLU layers over the input layer ends in one logit z a candidate. Trained by weighted
logistic regression (`training.losses`), exp(z) is the expected watch time in seconds.
"""

import itertools
import math

import torch
from torch import Tensor, nn

from watchrank.config import HIDDEN_PRESETS, RankingSettings
from watchrank.models.calibration import Calibration
from watchrank.models.inputs import Features, InputLayer


class Logit(nn.Linear):
    """A linear layer in float32 also where mixed precision is on: exp(logit) would show every rounding."""

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., 1] from x [..., width]."""
        if not torch.is_autocast_enabled(x.device.type):
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


class RankingModel(nn.Module):
    """Features of B requests and their K candidates to logits [B, K].

    The last step is a calibration, fitted on a later window after training.
    """

    def __init__(self, inputs: InputLayer, settings: RankingSettings) -> None:
        super().__init__()
        self.inputs = inputs
        self.max_logit = math.log(settings.max_watch_seconds)
        widths = [inputs.width, *HIDDEN_PRESETS[settings.hidden]]
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        self.hidden = nn.Sequential(*layers)
        self.logit = Logit(widths[-1], 1)
        self.calibration = Calibration()

    def forward(self, x: Features) -> Tensor:
        """Return the logit of every candidate [B, K]."""
        logit: Tensor = self.logit(self.hidden(self.inputs(x)))  # [B, K, 1]
        calibrated: Tensor = self.calibration(logit.squeeze(-1))
        return calibrated


class ExpectedWatchTime(nn.Module):
    """The served head: exp(logit) in seconds, at most the model's `max_watch_seconds`."""

    def __init__(self, model: RankingModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Features) -> Tensor:
        """Return the expected watch time [B, K] in seconds; always finite."""
        return torch.exp(self.model(x).clamp(max=self.model.max_logit))
