"""CNN-DSSM: a convolution over windows of three words, then the largest value of each feature map.

Shen, He, Gao, Deng, Mesnil: A Latent Semantic Model with Convolutional-Pooling Structure for Information
Retrieval, CIKM 2014, section 3: 300 maps, max over time, 128 outputs, all tanh.

The convolution reads three stacked count vectors, 3 x 30,000 wide. Before its tanh it is linear, so each
n-gram has a row for each place of the window, and a window is the sum of its words' rows for their places.
Bias and tanh keep the order of windows, so they come after the largest is found.
"""

import torch
from torch import Tensor, nn

from watchrank.models.text.words import WordBags, present


class Cnn(nn.Module):
    """N-gram ids [B, L, G] to vectors [B, D]."""

    def __init__(self, keys: Tensor, *, maps: int = 300, dim: int = 128) -> None:
        """Make the tower of a vocabulary `keys` [V] with `maps` feature maps and vectors of width `dim`."""
        super().__init__()
        self.bags = WordBags(keys, maps, window=3)
        self.bias = nn.Parameter(torch.zeros(maps))
        self.output = nn.Sequential(nn.Linear(maps, dim), nn.Tanh())

    def forward(self, ids: Tensor) -> Tensor:
        """Return [B, D]; in a text without words every map is -1, below what any window gives."""
        windows = self.bags(ids).masked_fill(~present(ids).unsqueeze(2), -torch.inf)  # [B, L, maps]
        vector: Tensor = self.output(torch.tanh(windows.max(1).values + self.bias))
        return vector
