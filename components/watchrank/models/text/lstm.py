"""LSTM-DSSM: the words one after the other; the last hidden state is the text's vector.

Palangi, Deng, Shen, Gao, He, Chen, Song, Ward: Deep Sentence Embedding Using Long Short-Term Memory Networks,
IEEE/ACM TASLP 2016, section 3, with the peepholes of Gers, Schraudolph and Schmidhuber 2002.
"""

from torch import Tensor, nn

from watchrank.models.text.peephole_lstm import PeepholeLstm
from watchrank.models.text.words import WordBags, present


class Lstm(nn.Module):
    """N-gram ids [B, L, G], words from the front, to vectors [B, D]."""

    def __init__(self, keys: Tensor, *, width: int = 300, dim: int = 128) -> None:
        """Make the tower of a vocabulary `keys` [V] with words `width` wide and a state `dim` wide."""
        super().__init__()
        self.bags = WordBags(keys, width)
        self.lstm = PeepholeLstm(width, dim)

    def forward(self, ids: Tensor) -> Tensor:
        """Return [B, D]; a text without words is read as one unknown word."""
        lengths = present(ids).sum(1).clamp(min=1)
        vector: Tensor = self.lstm(self.bags(ids), lengths)
        return vector
