"""Texts as ids, in the engine."""

import functools

import ibis
import ibis.expr.types as ir

from watchrank.schema import PAD_ID

_HEX = "0123456789abcdef"
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003134f"
_SPACES = "".join(sign for sign in map(chr, range(0x3001)) if sign.isspace())


def text_ids(text: ir.StringValue) -> ir.IntegerValue:
    """Return `schema.text_id` of each string, as an expression; `PAD_ID` where it is missing."""
    digest = text.hexdigest("md5")
    digits = [ibis.literal(_HEX).find(digest.substr(place, 1)) for place in range(15)]
    wide = [digit.cast("int32").cast("int64") for digit in digits]  # Spark's find is 32 bits wide
    return functools.reduce(lambda high, low: high * 16 + low, wide).fill_null(PAD_ID)


def search_tokens(query: ir.StringValue) -> ir.ArrayValue:
    """Split a query into lower-cased words, then its Chinese and Japanese characters one by one."""
    text = query.lower()
    spaced = text.re_replace(f"[{_CJK}{_SPACES}]+", " ")
    words = spaced.split(" ").filter(lambda word: word != "")
    signs = text.re_replace(f"[^{_CJK}]", "")
    return words.concat(ibis.range(0, signs.length()).map(lambda place: signs.substr(place, 1)))
