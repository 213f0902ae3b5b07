"""Penn Treebank tokenizer of captions, as in COCO's evaluation.

The official evaluation calls Stanford's PTBTokenizer 3.4.1 (Java) with `-preserveLines -lowerCase`
and drops punctuation. This module reproduces its decisions for caption-like text. They were derived
by comparing outputs: tests/data/ptb_words.json has some of the original's.
"""

from __future__ import annotations

import re

# Tokens that the official evaluation drops. Its list has brackets in capitals, but they arrive in
# small letters and stay. The last two characters are unknown to its tokenizer by themselves.
_DROPPED = frozenset("'' ' `` ` . ? ! , : - -- ... ; ‐ ‑".split(" "))  # noqa: SIM905
# A period after these words always belongs to them.
_SHORTENED = """
    adj adm adv al ala alex apr ariz assn assoc asst atty attys aug ave bancorp bhd bldg blvd
    brig bros calif capt cf cie cmdr co col colo conn corp cos cpl ct dak dec dept det dr drs
    elec esq est etc ext feb fla fri ft ga gen gov govs hon inc ind insp intl invt jan jos jr
    jul jun kan kans ky lieut lt ltd maj mar md messrs mfg mich minn mlle mme mo mon mont mr mrs
    ms msgr mt mtg natl neb nev nov oct okla penn pfc ph plc pres prof pty ptys pvt rd rep reps
    rev rt sen sens sep sept sfc sgt spc sq sr st ste supt sys tel tenn thu thurs treas tue tues
    univ va vs vt wed wis wisc wm wyo
"""
# Only with a capital, since they are also ordinary words.
_STATES = "Ark Del Ill La Mass Miss Ore Pa Tex Wash"
# Only before a number.
_NUMBERED = "art ca fig figs no nos op pp prop"
# Capitalised, these begin a sentence, so that a letter and period before them end one. At the end
# of a caption the next one begins, usually with one of them.
_STARTS = """
    A About According Additionally After An As At But Earlier He Her Here However If In It Last Many
    More Now Once One Other Our She Since So Some Such That The Their Then There These They This We
    What When While Yet You
"""
_STARTS += _STARTS.upper()
# Words with an apostrophe that stay whole.
_WHOLE = (
    *("o'clock", "ma'am", "c'mon", "cap'n", "hallowe'en", "ne'er", "e'er", "s'mores", "ol'"),
    *("'em", "'til", "'till", "'cause"),
)
# Two words written as one, and their parts.
_JOINED = ("can", "not"), ("gon", "na"), ("got", "ta"), ("lem", "me"), ("gim", "me"), ("wan", "na")
_NAMED = {
    **{"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&apos;": "'", "&nbsp;": " "},
    **{"&mdash;": " -- ", "&ndash;": " -- ", "&MD;": " -- "},
}
_SIGNS = str.maketrans(
    {
        **dict.fromkeys("’›", "'"),
        **dict.fromkeys("‘‛‹", "`"),
        **dict.fromkeys("“”«»", '"'),
        **dict.fromkeys("–—―", " -- "),
        **{"…": " ... ", "€": "$", "¤": "$", "₠": "$"},
        **{"¼": " 1/4 ", "½": " 1/2 ", "¾": " 3/4 ", "⅓": " 1/3 ", "⅔": " 2/3 "},
        # Characters that the tokenizer cannot handle are dropped and separate their neighbours.
        **dict.fromkeys("\u2012\u200b\u200c\u200d\u200e\u200f\ufe0e\ufe0f\ufeff", " "),
    }
)
# Characters beyond 16 bits, such as most emoji, are unknown to it too.
_UNKNOWN = re.compile("[\ud800-\udfff\U00010000-\U0010ffff]+")
_RENAMED = {
    **{"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"},
    **{"£": "#", "¢": "cents"},
}
_BRACKET = re.compile(r"[()]")
# Most words: letters up to a space, which no rule extends.
_PLAIN = re.compile(rf"(?!(?:{'|'.join(map(''.join, _JOINED))})\b)[A-Za-z]+(?!\S)", re.IGNORECASE)

# A letter is a word character that is no digit, superscript or fraction.
_L = r"(?:[^\W\d_²³¹¼-¾⁰-₉⅐-↉①-⒛]|[\u0300-\u036f\u00ad])"
_A = rf"(?:{_L}|\d)"
_NUMBER = r"(?:\d*(?:[.,:]\d+)+|\d+)"
_END = r"(?![A-Za-z])"
# Neither a letter nor a clitic follows.
_AT_END = rf"(?!{_A}|'(?:[msd]|re|ve|ll)(?![A-Za-z])|[-/_&.?!]{_A})"


def _any_of(words: str | tuple[str, ...]) -> str:
    found = words.split() if isinstance(words, str) else words
    return f"(?:{'|'.join(sorted(map(re.escape, found), key=len, reverse=True))})"


# The longest match wins, lookahead in "(?=...)" included; ties go to the first rule.
_RULES = [
    re.compile(rf"(?P<token>{token})(?P<after>{after})", flags)
    for token, after, flags in (
        # Tags and names of characters.
        (r"<[/!?]?[A-Za-z][^<>\n]*>", "", 0),
        (r"&#\d+;|&(?:HT|TL|UR|LR|QC|QL|QR|odq|cdq);", "", 0),
        # Two words written as one; the second is matched next.
        *((first, f"{second}{_AT_END}", re.IGNORECASE) for first, second in _JOINED),
        # Words, and words before a clitic.
        (rf"{_A}+", "", 0),
        (rf"{_A}+", rf"'(?:[msd]|re|ve|ll){_END}", re.IGNORECASE),
        (rf"{_L}*?{_L}", rf"n['`]t{_END}", re.IGNORECASE),
        (rf"n['`]t{_END}|'(?:[msd]|re|ve|ll){_END}", "", re.IGNORECASE),
        (rf"{_any_of(_WHOLE)}{_END}|'[2-9]0s{_END}", "", re.IGNORECASE),
        (r"'n'|'n(?!\S)", "", re.IGNORECASE),
        (rf"(?:[dol]|qu)'{_L}{{2,}}|y'(?={_L})", "", re.IGNORECASE),
        (r"'t", "(?:is|was)", re.IGNORECASE),
        # Internet addresses and names.
        (r"https?://[^\s<>\"|(){}]+[^\s<>\"|(){}.,;:!?'-]", "", re.IGNORECASE),
        (
            r"(?:[\w-]+\.)+(?:com|net|org|edu)(?:/[^\s<>\"|(){}]*[^\s<>\"|(){}.,;:!?'-])?",
            "",
            re.IGNORECASE,
        ),
        (r"[A-Za-z0-9][\w.+-]*@[\w-]+(?:\.[\w-]+)*", "", 0),
        (r"@[A-Za-z_]\w*|#[A-Za-z]+", "", 0),
        # Numbers, dates, fractions, telephones.
        (rf"[-+]?{_NUMBER}", "", 0),
        (r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}", "", 0),
        (r"(?:\d{1,4}-)?\d{1,4}/\d{1,4}", "", 0),
        (r"\(\d{3}\)[- ]?\d{3}[- ]\d{4}", "", 0),
        (r"(?:\d-)?(?:\d{3}-)?\d{3}-\d{4}", "", 0),
        # Compounds.
        (rf"[A-Za-z0-9][A-Za-z0-9.,]*(?:[-‐‑]{_A}+)+", "", 0),
        (rf"{_A}+(?:[-‐‑]{_A}+)+", "", 0),
        (rf"[dol]'{_L}{{2,}}(?:-{_A}+)+", "", re.IGNORECASE),
        (
            r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}",
            "",
            0,
        ),
        (rf"{_A}+(?:_{_A}+)+", "", 0),
        (r"[A-Z]+&[A-Z]+", "", 0),
        (r"[Cc]\+\+|[CcFf]#", "", 0),
        # Words with periods.
        (rf"{_L}{_A}*(?:[.?!]{_L}{_A}*)+", "", 0),
        (r"[A-Za-z](?:\.[A-Za-z])+\.", "", 0),
        (rf"[A-Za-z]\.(?!\s*$|\s+{_any_of(_STARTS)}(?:\s|$))", "", 0),
        (rf"(?:(?:Ph|Ed)\.D|{_any_of(_SHORTENED)})\.", "", re.IGNORECASE),
        (
            rf"{_any_of(_STATES)}\.|{_any_of(_STATES.upper())}\.",
            "",
            0,
        ),
        (rf"{_any_of(_NUMBERED)}\.", r"\s?\d", re.IGNORECASE),
        (rf"{_A}+\.", r"[,;:]", 0),
        # Money and signs.
        (r"[A-Z]+\$", "", 0),
        (rf"(?:[<>]?[:;=]['`]?-?[()DP\]|])(?!{_A})|\^_\^|-_-", "", re.IGNORECASE),
        (r"[?!]+|\.\.\.|(?:\. ){2}\.|--+|\*+|_+|#+|@+|``|''|<<|>>", "", 0),
        (r"-[LR][RSC]B-", "", re.IGNORECASE),
        (r"\S", "", 0),
    )
]


def tokenize_caption(text: str) -> list[str]:
    """Tokenize a caption into lower-case words, clitics separated ("it 's", "do n't").

    Punctuation is dropped as by the official evaluation, which keeps brackets ("-lrb-"), "!!", and
    symbols such as "$" and "&".

    Args:
        text: caption to tokenize.
    """
    for name, sign in _NAMED.items():
        text = text.replace(name, sign)
    text = _UNKNOWN.sub(" ", text).translate(_SIGNS)
    words = [word for token in _tokens(text) for word in token.lower().split()]
    return [word for word in words if word not in _DROPPED]


def _tokens(text: str) -> list[str]:
    found = []
    position = 0
    while position < len(text):
        if text[position].isspace():
            position += 1
            continue
        match = _PLAIN.match(text, position)
        if match is None:
            match = max((rule.match(text, position) for rule in _RULES), key=_length)
            end = match.end("token")
        else:
            end = match.end()
        found.append(text[position:end])
        position = end
    return [_renamed(token) for token in found]


def _renamed(token: str) -> str:
    if token == '"':
        return "''"
    if token in ("---", "----"):
        return "--"
    return _RENAMED.get(token) or _BRACKET.sub(lambda bracket: _RENAMED[bracket[0]], token)


def _length(match: re.Match | None) -> int:
    return -1 if match is None else match.end() - match.start()
