"""The last step of a ranker: a rising, piecewise linear map of its logit, fitted on a later window."""

import torch
from torch import Tensor, nn

KNOTS = 10


class Calibration(nn.Module):
    """z + shift + how much the map rises or falls between its knots on the way to z.

    Untrained it is the identity. `training.calibration` fits it.
    """

    shift: Tensor
    lower: Tensor
    width: Tensor
    slope: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(()))
        self.register_buffer("lower", torch.zeros(KNOTS - 1))
        self.register_buffer("width", torch.ones(KNOTS - 1))
        self.register_buffer("slope", torch.zeros(KNOTS - 1))

    def forward(self, z: Tensor) -> Tensor:
        """Map logits, any shape."""
        way = torch.minimum((z.unsqueeze(-1) - self.lower).clamp(min=0), self.width)  # [..., KNOTS - 1]
        return z + self.shift + (way * self.slope).sum(-1)
