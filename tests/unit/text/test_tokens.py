import unicodedata

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from watchrank.models.lookup import Vocabulary, top_ids
from watchrank.models.text.tokens import ngram_ids, words
from watchrank.schema import PAD_ID, text_id

ANY_TEXT = st.text(st.characters(), max_size=60) | st.text(max_size=60)
MIXED = "Good 你好 ｆｕｌｌ Ⅷ ﾊﾟ 한국어 नमस्ते école"


def ids_of(*texts):
    return ngram_ids(texts, max_words=12, max_ngrams=6)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Good Morning", ["good", "morning"]),
        ("怎么做菜", ["怎", "么", "做", "菜"]),
        ("iPhone15怎么用", ["iphone15", "怎", "么", "用"]),
        ("カタカナ・ひらがな", [*"カタカナひらがな"]),
        ("한국어", ["한", "국", "어"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("v0.65 2024年", ["v0", "65", "2024", "年"]),
        ("ＦＵＬＬ　ｗｉｄｔｈ", ["full", "width"]),
        ("Straße, don't!", ["strasse", "don", "t"]),
        ("a\u200bb \ud800x", ["a", "b", "x"]),
        (" !? ", []),
        ("", []),
        (None, []),
    ],
)
def test_words_are_letters_and_digits_and_single_chinese_japanese_and_korean_characters(text, expected):
    assert words(text) == expected


def test_a_word_is_the_bag_of_its_letter_trigrams_and_a_character_stands_for_itself():
    ids = ids_of("good 好 a")
    bags = [["#go", "goo", "ood", "od#"], ["好"], ["#a#"]]
    assert [[value for value in row if value != PAD_ID] for row in ids[0].tolist()] == [
        [text_id(ngram) for ngram in bag] for bag in bags
    ]


def test_texts_are_padded_at_the_end_and_cut_to_the_bounds():
    ids = ngram_ids(["abcdefghij x 一 二", "", None], max_words=3, max_ngrams=4)
    assert ids.shape == (3, 3, 4)
    assert (ids[0] >= 0).sum(1).tolist() == [4, 1, 1]
    assert ids[0, 0].tolist() == [text_id(ngram) for ngram in ("#ab", "abc", "bcd", "cde")]
    assert (ids[1:] == PAD_ID).all()
    assert ids_of("").shape == (1, 1, 1)
    assert ids_of().shape == (0, 1, 1)


@settings(deadline=None)
@given(ANY_TEXT)
def test_any_text_has_the_same_ids_alone_and_among_others_within_the_bounds(text):
    alone, among = ids_of(text)[0], ids_of(MIXED, text, "")[1]
    assert alone.dtype == np.int64
    assert (among[: len(alone), : alone.shape[1]] == alone).all()
    assert (among >= 0).sum() == (alone >= 0).sum()
    assert alone.shape[0] <= 12
    assert alone.shape[1] <= 6
    there = alone >= 0
    assert (there[:, :-1] >= there[:, 1:]).all(), "n-grams stand at the front of their word"
    assert (there[:-1, 0] >= there[1:, 0]).all(), "words stand at the front of their text"
    assert there[:, 0].sum() == min(len(words(text)), 12)


@settings(deadline=None)
@example("\u03d2", "NFKD")  # a capital only in its compatible form
@example("\u03b1\u0345\u0301", "NFD")  # marks that stand in another order once normalised
@given(ANY_TEXT, st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"]))
def test_texts_of_equal_normal_form_or_case_have_equal_ids(text, form):
    assert words(unicodedata.normalize(form, text)) == words(text)
    assert words(unicodedata.normalize("NFD", text).casefold()) == words(text)
    assert words(" ".join(words(text))) == words(text)


@settings(deadline=None)
@given(st.lists(ANY_TEXT, min_size=1, max_size=5), st.integers(0, 30))
def test_a_vocabulary_that_was_stored_gives_the_same_rows(texts, limit):
    ids = ids_of(*texts)
    keys = top_ids(ids.ravel(), np.ones(ids.size), limit)
    rows = Vocabulary(keys)(torch.from_numpy(ids))
    stored = load(save({"keys": keys}))["keys"]
    assert torch.equal(Vocabulary(stored)(torch.from_numpy(ids_of(*texts))), rows)
    assert rows.max() <= limit
    assert (rows[torch.from_numpy(ids) == PAD_ID] == 0).all()
