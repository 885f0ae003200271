"""DSSM: the text as one bag of n-grams. The baseline, which knows no order.

Huang, He, Gao, Deng, Acero, Heck: Learning Deep Structured Semantic Models for Web Search using Clickthrough
Data, CIKM 2013, section 3.3: 30,000 n-grams, two hidden layers of 300, 128 outputs, all tanh.
"""

from torch import Tensor, nn

from watchrank.models.text.words import WordBags


class BagOfWords(nn.Module):
    """N-gram ids [B, L, G] to vectors [B, D]."""

    def __init__(self, keys: Tensor, *, hidden: int = 300, dim: int = 128) -> None:
        """Make the tower of a vocabulary `keys` [V] with layers `hidden` wide and vectors `dim` wide."""
        super().__init__()
        self.bags = WordBags(keys, hidden)
        self.bias = nn.Parameter(0.01 * nn.init.normal_(self.bags.table.weight.new_empty(hidden)))
        self.layers = nn.Sequential(
            nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, dim), nn.Tanh()
        )

    def forward(self, ids: Tensor) -> Tensor:
        """Return [B, D]; a text without words is what the biases give."""
        bag = self.bags(ids.flatten(1).unsqueeze(1)).squeeze(1)
        vector: Tensor = self.layers(bag + self.bias)
        return vector
