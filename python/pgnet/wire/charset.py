"""Which text a body is: the charset of its Content-Type, as the WHATWG's Encoding Standard has it.

https://encoding.spec.whatwg.org/#names-and-labels says what browsers take each label for.
ISO-8859-1 and US-ASCII mean windows-1252, because that is what servers with these labels send.

The table stands here, and no label reaches Python's own look-up of codecs: that one remembers for
ever also what it has not found, and a server may name another charset with each answer.
"""

from __future__ import annotations

import codecs
import functools
import json
import re

# Python's codecs, and the labels that mean them. x-user-defined and the labels that the standard
# replaces as a whole (hz-gb-2312, iso-2022-kr and their like) are left out: such bodies stay bytes.
_LABELS = {
    "utf_8": "unicode-1-1-utf-8 unicode11utf8 unicode20utf8 utf-8 utf8 x-unicode20utf8",
    "cp866": "866 cp866 csibm866 ibm866",
    "iso8859_2": (
        "csisolatin2 iso-8859-2 iso-ir-101 iso8859-2 iso88592 iso_8859-2 iso_8859-2:1987 l2 latin2"
    ),
    "iso8859_3": (
        "csisolatin3 iso-8859-3 iso-ir-109 iso8859-3 iso88593 iso_8859-3 iso_8859-3:1988 l3 latin3"
    ),
    "iso8859_4": (
        "csisolatin4 iso-8859-4 iso-ir-110 iso8859-4 iso88594 iso_8859-4 iso_8859-4:1988 l4 latin4"
    ),
    "iso8859_5": (
        "csisolatincyrillic cyrillic iso-8859-5 iso-ir-144 iso8859-5 iso88595 iso_8859-5 "
        "iso_8859-5:1988"
    ),
    "iso8859_6": (
        "arabic asmo-708 csiso88596e csiso88596i csisolatinarabic ecma-114 iso-8859-6 "
        "iso-8859-6-e iso-8859-6-i iso-ir-127 iso8859-6 iso88596 iso_8859-6 iso_8859-6:1987"
    ),
    "iso8859_7": (
        "csisolatingreek ecma-118 elot_928 greek greek8 iso-8859-7 iso-ir-126 iso8859-7 "
        "iso88597 iso_8859-7 iso_8859-7:1987 sun_eu_greek"
    ),
    "iso8859_8": (
        "csiso88598e csiso88598i csisolatinhebrew hebrew iso-8859-8 iso-8859-8-e iso-8859-8-i "
        "iso-ir-138 iso8859-8 iso88598 iso_8859-8 iso_8859-8:1988 logical visual"
    ),
    "iso8859_10": "csisolatin6 iso-8859-10 iso-ir-157 iso8859-10 iso885910 l6 latin6",
    "iso8859_13": "iso-8859-13 iso8859-13 iso885913",
    "iso8859_14": "iso-8859-14 iso8859-14 iso885914",
    "iso8859_15": "csisolatin9 iso-8859-15 iso8859-15 iso885915 iso_8859-15 l9",
    "iso8859_16": "iso-8859-16",
    "koi8_r": "cskoi8r koi koi8 koi8-r koi8_r",
    "koi8_u": "koi8-ru koi8-u",
    "mac_roman": "csmacintosh mac macintosh x-mac-roman",
    "cp874": "dos-874 iso-8859-11 iso8859-11 iso885911 tis-620 windows-874",
    "cp1250": "cp1250 windows-1250 x-cp1250",
    "cp1251": "cp1251 windows-1251 x-cp1251",
    "cp1252": (
        "ansi_x3.4-1968 ascii cp1252 cp819 csisolatin1 ibm819 iso-8859-1 iso-ir-100 iso8859-1 "
        "iso88591 iso_8859-1 iso_8859-1:1987 l1 latin1 us-ascii windows-1252 x-cp1252"
    ),
    "cp1253": "cp1253 windows-1253 x-cp1253",
    "cp1254": (
        "cp1254 csisolatin5 iso-8859-9 iso-ir-148 iso8859-9 iso88599 iso_8859-9 "
        "iso_8859-9:1989 l5 latin5 windows-1254 x-cp1254"
    ),
    "cp1255": "cp1255 windows-1255 x-cp1255",
    "cp1256": "cp1256 windows-1256 x-cp1256",
    "cp1257": "cp1257 windows-1257 x-cp1257",
    "cp1258": "cp1258 windows-1258 x-cp1258",
    "mac_cyrillic": "x-mac-cyrillic x-mac-ukrainian",
    "gb18030": (
        "chinese csgb2312 csiso58gb231280 gb18030 gb2312 gb_2312 gb_2312-80 gbk iso-ir-58 x-gbk"
    ),
    "big5hkscs": "big5 big5-hkscs cn-big5 csbig5 x-x-big5",
    "euc_jp": "cseucpkdfmtjapanese euc-jp x-euc-jp",
    "iso2022_jp": "csiso2022jp iso-2022-jp",
    "cp932": "csshiftjis ms932 ms_kanji shift-jis shift_jis sjis windows-31j x-sjis",
    "cp949": (
        "cseuckr csksc56011987 euc-kr iso-ir-149 korean ks_c_5601-1987 ks_c_5601-1989 ksc5601 "
        "ksc_5601 windows-949"
    ),
    "utf_16_be": "unicodefffe utf-16be",
    "utf_16_le": "csunicode iso-10646-ucs-2 ucs-2 unicode unicodefeff utf-16 utf-16le",
}
_CODECS = {label: codec for codec, labels in _LABELS.items() for label in labels.split()}
_CHARSET = re.compile(r";\s*charset\s*=\s*[\"']?([^\s;,\"']+)", re.IGNORECASE)
_IS_TEXT = re.compile(r"text/|xml|javascript").search
_BOMS = (
    (codecs.BOM_UTF8, "utf_8"),
    (codecs.BOM_UTF16_LE, "utf_16_le"),
    (codecs.BOM_UTF16_BE, "utf_16_be"),
)


def read_text(body: bytes, content_type: str | None, *, is_whole: bool = True) -> str:
    """Read a body, which is not empty, as text, without its byte order mark.

    JSON is UTF-8, whatever its label says (RFC 8259, section 8.1), or one of the encodings that
    older standards allowed, which its first bytes show. Any other text has the charset of its byte
    order mark, or else that of its label, or else UTF-8. A charset within the text, as in
    HTML's <meta>, is not read.

    is_whole: whether all of the body came. Where more should have come, the end may lie within a
    character, which is left out.

    Raises ValueError for what is not text, LookupError for a label that is not known.
    """
    kind, _, parameters = (content_type or "").partition(";")
    kind = kind.lower()
    if "json" in kind:
        first = body[:4]
        usual = first.isascii() and 0 not in first
        try:
            return _decode(body, "utf_8" if usual else json.detect_encoding(body), is_whole)
        except ValueError:
            # Some servers mean what their label says.
            pass
    elif body[0] >= 0xEF and _IS_TEXT(kind):
        for mark, codec in _BOMS:
            if body.startswith(mark):
                return _decode(body[len(mark) :], codec, is_whole)
    label = _CHARSET.search(f";{parameters}") if parameters else None
    return _decode(body, _CODECS[label[1].lower()] if label else "utf_8", is_whole)


def _decode(body: bytes, codec: str, is_whole: bool) -> str:
    if codec in _WITH_CONTROLS:
        return codecs.charmap_decode(body, "strict", _table(codec))[0]
    if is_whole:
        return body.decode(codec)
    return codecs.getincrementaldecoder(codec)().decode(body)


# The standard has control characters in these where Python's codecs have no character.
_WITH_CONTROLS = frozenset(("cp874", *(f"cp{number}" for number in range(1250, 1259))))


@functools.cache
def _table(codec: str) -> str:
    """The 256 characters of one of these charsets."""
    characters = []
    for number in range(256):
        otherwise = chr(number) if number < 0xA0 else "\ufffe"  # which codecs take for "undefined"
        characters.append(bytes([number]).decode(codec, "ignore") or otherwise)
    return "".join(characters)
