"""Texts to ids of their n-grams: what training and serving both call, so that they cannot differ.

Word hashing (Huang et al. 2013, section 3.2): a word is the bag of its letter trigrams, `#good#` is #go, goo,
ood, od#. Words keep their order. A Chinese, Japanese or Korean character is a word of its own, a bag of one.
An n-gram travels as its `schema.text_id`; the vocabulary that turns ids into rows is part of the model's
graph, so a caller needs none and cannot have that of another release.
"""

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain

import numpy as np

from watchrank.schema import PAD_ID, SEARCH_NGRAMS, SEARCH_WORDS, text_id

CHARACTER_SCRIPTS = ("CJK ", "IDEOGRAPHIC ", "HIRAGANA ", "KATAKANA", "HANGUL ", "BOPOMOFO ")
"""How the Unicode names of characters begin that are words of their own."""


def words(text: str | None) -> list[str]:
    """Split a text into words of letters, marks and digits, and single characters of `CHARACTER_SCRIPTS`.

    Everything else separates words. Texts that differ in case or in a compatible form (full width, ligatures,
    composed or not) have the same words.
    """
    folded = unicodedata.normalize("NFKD", text or "").casefold()
    return unicodedata.normalize("NFKC", folded).translate(_SPACED).split()


def ngram_ids(texts: Sequence[str | None], *, max_words: int, max_ngrams: int) -> np.ndarray:
    """Return the ids of the n-grams of B texts, int64 [B, L, G], from the front, padded with `PAD_ID`.

    Args:
        texts: what to read; a missing text is an empty one.
        max_words: words of a text that are read, the first ones.
        max_ngrams: n-grams of a word that are read, the first ones.

    Returns:
        L is the number of words of the longest text, G that of n-grams of the longest word; both at least 1.
    """
    split = [words(text)[:max_words] for text in texts]
    bags = [_bag(word[: max_ngrams + 1], max_ngrams) for word in chain.from_iterable(split)]
    ngrams = _padded([len(bag) for bag in bags], chain.from_iterable(bags))
    there = _places([len(row) for row in split])
    ids = np.full((*there.shape, ngrams.shape[1]), PAD_ID, dtype=np.int64)
    ids[there] = ngrams
    return ids


def query_ids(texts: Sequence[str | None]) -> np.ndarray:
    """Return the n-grams of B searches as they are kept and sent, int64 [B, words * n-grams]."""
    return as_search(ngram_ids(texts, max_words=SEARCH_WORDS, max_ngrams=SEARCH_NGRAMS))


def as_search(ids: np.ndarray) -> np.ndarray:
    """Cut or pad n-grams [B, L, G] to those of a search as it is kept and sent [B, words * n-grams]."""
    cut = ids[:, :SEARCH_WORDS, :SEARCH_NGRAMS]
    short = [
        (0, most - there) for most, there in zip((SEARCH_WORDS, SEARCH_NGRAMS), cut.shape[1:], strict=True)
    ]
    return np.pad(cut, [(0, 0), *short], constant_values=PAD_ID).reshape(len(ids), -1)


class _Spaced(dict[int, str]):
    """What `str.translate` puts for each character: itself, itself between spaces, or a space."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        category = unicodedata.category(character)[0]
        if category == "C":
            return " "
        if category not in "LMN":
            self[code] = " "
        else:
            self[code] = f" {character} " if _is_word(character) else character
        return self[code]


_SPACED = _Spaced()


def _is_word(character: str) -> bool:
    return unicodedata.name(character, "").startswith(CHARACTER_SCRIPTS)


@lru_cache(maxsize=200_000)
def _bag(word: str, most: int) -> tuple[int, ...]:
    """Return the ids of a word's first `most` n-grams; `word` is at least its first `most` + 1 letters."""
    if len(word) == 1 and _is_word(word):
        return (text_id(word),)
    marked = f"#{word}#"
    return tuple(text_id(marked[place : place + 3]) for place in range(min(len(word), most)))


def _padded(counts: list[int], values: chain[int]) -> np.ndarray:
    there = _places(counts)
    rows = np.full(there.shape, PAD_ID, dtype=np.int64)
    rows[there] = np.fromiter(values, dtype=np.int64, count=sum(counts))
    return rows


def _places(counts: list[int]) -> np.ndarray:
    """Return which places of each row hold a value, bool [rows, at least 1]."""
    there: np.ndarray = np.arange(max(counts, default=1) or 1) < np.array(counts, dtype=np.int64)[:, None]
    return there
