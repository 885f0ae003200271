"""The two towers of text matching: R(query, document) is the cosine of their vectors.

Both answer unit vectors, so that a cosine is an inner product and any index of inner products searches by it.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from watchrank.models.inputs import Features
from watchrank.models.text.side_fields import SideFields

QUERY, TITLE = "query_ngram_ids", "title_ngram_ids"


class QueryTower(nn.Module):
    """A query [B, L, G] as a unit vector [B, D]."""

    def __init__(self, text: nn.Module) -> None:
        super().__init__()
        self.text = text

    def forward(self, x: Features) -> Tensor:
        """Return [B, D] from `query_ngram_ids` [B, L, G]."""
        return F.normalize(self.text(x[QUERY]))


class DocumentTower(nn.Module):
    """A document's title and its other fields as a unit vector [B, D]."""

    def __init__(self, text: nn.Module, fields: SideFields | None = None) -> None:
        super().__init__()
        self.text, self.fields = text, fields

    def forward(self, x: Features) -> Tensor:
        """Return [B, D] from `title_ngram_ids` [B, L, G] and the fields [B, 1]."""
        vector = self.text(x[TITLE])
        if self.fields is not None:
            vector = vector + self.fields(x)
        return F.normalize(vector)


class TextMatch(nn.Module):
    """Both towers; given one and the same text module, they share its weights."""

    def __init__(self, query: QueryTower, document: DocumentTower) -> None:
        super().__init__()
        self.query, self.document = query, document

    def forward(self, x: Features) -> tuple[Tensor, Tensor]:
        """Return the unit vectors of the queries [B, D] and of the documents [N, D]."""
        return self.query(x), self.document(x)
