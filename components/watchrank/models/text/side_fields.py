"""What a document has beside its text, its channel and its category, as a vector to add to the text's.

Each field by an embedding, all of them by a two-layer MLP into the dimension of the text's vector.
"""

import torch
from torch import Tensor, nn

from watchrank.models.inputs import Features
from watchrank.models.lookup import IdEmbedding, Vocabulary


class SideFields(nn.Module):
    """Fields [B, 1] each to one vector [B, D]."""

    def __init__(
        self, keys: dict[str, Tensor], *, width: int = 32, hidden: int = 128, dim: int = 128
    ) -> None:
        """Make the layers.

        Args:
            keys: the sorted ids of the vocabulary of each field, at least one, by its feature's name.
            width: of a field's embedding.
            hidden: of the first layer.
            dim: of the text's vector.
        """
        super().__init__()
        self.width = width
        self.embeddings = nn.ModuleDict(
            {name: IdEmbedding(Vocabulary(own), width) for name, own in keys.items()}
        )
        self.layers = nn.Sequential(nn.Linear(len(keys) * width, hidden), nn.Tanh(), nn.Linear(hidden, dim))

    @property
    def columns(self) -> list[str]:
        """What each input of the first layer is, in their order."""
        width = self.width
        return [f"{name}, {place} of {width}" for name in self.embeddings for place in range(width)]

    def forward(self, x: Features) -> Tensor:
        """Return [B, D]; an id outside its vocabulary is the zero vector before the layers."""
        fields = torch.cat([embedding(x[name]).squeeze(1) for name, embedding in self.embeddings.items()], 1)
        vector: Tensor = self.layers(fields)
        return vector
