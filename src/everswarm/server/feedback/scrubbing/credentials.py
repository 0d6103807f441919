"""Keys and tokens: by the prefix of their provider, by the word before them, or by how random they look."""

from __future__ import annotations

import re
from collections.abc import Iterator

from everswarm.server.feedback.scrubbing.found import Found, Kind
from everswarm.server.feedback.scrubbing.passwords import looks_chosen

_KEYS = re.compile(
    r"(?<![A-Za-z0-9])(?:sk-[\w\-]{16,250}|[srp]k_(?:live|test|prod)_[A-Za-z0-9]{10,120}|whsec_[A-Za-z0-9+/=]{16,80}"
    r"|(?:AKIA|ASIA|ABIA|ACCA|AROA|AIDA)[A-Z0-9]{16}(?![A-Z0-9])|AIza[\w\-]{30,45}|GOCSPX-[\w\-]{20,40}"
    r"|SG\.[\w\-]{16,30}\.[\w\-]{30,60}|key-[0-9a-f]{32}|xai-[\w\-]{20,120}|gsk_[A-Za-z0-9]{20,80}"
    r"|r8_[A-Za-z0-9]{20,60}"
    r"|AGE-SECRET-KEY-1[A-Z0-9]{30,80}|sq0[a-z]{3}-[\w\-]{20,60}|re_[A-Za-z0-9]{8,20}_[A-Za-z0-9]{16,40}"
    r"|SK[0-9a-f]{32}|lin_api_[A-Za-z0-9]{20,60}|ntn_[A-Za-z0-9]{20,60}|PMAK-[0-9a-f\-]{30,80}|nvapi-[\w\-]{20,90}"
    r"|pplx-[A-Za-z0-9]{20,60}|tskey-[\w\-]{16,80}|AccountKey=[A-Za-z0-9+/=]{40,100})"
)
_TOKENS = re.compile(
    r"(?<![A-Za-z0-9])(?:eyJ[\w\-]{8,4000}\.[\w\-]{4,8000}(?:\.[\w\-]{0,4000}){0,3}|gh[pousr]_[A-Za-z0-9]{20,255}"
    r"|github_pat_\w{20,255}|gl(?:pat|ptt|dt|rt|soat|cbt|ft)-[\w\-.]{16,64}|xox[abeoprs]-[\w\-]{10,250}"
    r"|xapp-[\w\-]{16,200}|hf_[A-Za-z0-9]{20,60}|api_org_[A-Za-z]{20,60}|npm_[A-Za-z0-9]{20,60}|pypi-[\w\-]{32,250}"
    r"|ya29\.[\w\-]{20,250}|1//[\w\-]{30,120}|shp(?:at|ca|pa|ss)_[0-9a-fA-F]{20,64}|do[por]_v1_[0-9a-f]{32,80}"
    r"|dckr_pat_[\w\-]{16,60}|EAA[A-Za-z0-9]{30,250}|[0-9]{8,10}:AA[\w\-]{30,40}"
    r"|[MNO][\w\-]{23,27}\.[\w\-]{6}\.[\w\-]{27,40}"
    r"|hvs\.[\w\-]{20,200}|secret_[A-Za-z0-9]{30,60}|ATATT[\w\-=]{20,250}|rpa_[A-Z0-9]{20,60})"
)
_PEM_START = re.compile(r"-----BEGIN (?:[A-Z0-9 ]{0,30})PRIVATE KEY(?: BLOCK)?-----")
_PEM_BODY = re.compile(r"[A-Za-z0-9+/=\s\\]{0,8000}")
_PEM_LONGEST = 16_000  # characters between the two lines
_IN_URL = re.compile(r"[A-Za-z](?<![A-Za-z].)[A-Za-z0-9+.\-]{1,20}://[^\s/:@]{0,64}:([^\s/@]{1,128})@")
_RUN = re.compile(r"[A-Za-z0-9](?<![A-Za-z0-9_\-+=.~%].)[A-Za-z0-9_\-+/=.~%]{15,511}")
_HEADER = re.compile(
    r"(?:authorization[\"']?[:=][ ]?[\"']?(?:basic|bearer|token|digest|apikey)"
    r"|\bbearer)[ ]([A-Za-z0-9._~+/=\-]{8,4000})",
    re.IGNORECASE,
)
_LONG_WORD_OF_ANY = re.compile(r"\S(?<!\S\S)\S{15,}")
_TOKEN_WORD = (
    r"token|jeton|bearer|authorization|session|sitzung|sesi[oó]n|cookie|\bjwt\b|\bsid\b|\breset|refresh|invite|magic"
    r"|r[ée]initialis|zur[üu]ck(?:zu)?setz|restablec|einladung|invita[ct]i|aktivier|activaci|\bmdp\b"
)
_KEY_WORD = (
    r"key|secret|schl[üu]e?ssel|\bcl(?:[eé]|ef)s?\b|clave|llave|credential|signature|signing|password|passwort|kennwort|geheim"
    r"|contrase|passe\b|zugang"
)
_NAMED = re.compile(rf"(?:(?P<token>{_TOKEN_WORD})|(?P<key>{_KEY_WORD}))[^\n]{{0,40}}$", re.IGNORECASE)
_TOKEN_NAMED = re.compile(rf"(?:{_TOKEN_WORD})[^\n]{{0,40}}$", re.IGNORECASE)
_DIGEST = re.compile(
    r"(?:\bsha-?(?:1|2|3|256|384|512)?\b|md5|commit\w*|hash\w*|checksum|digest|integrity|uuid|guid|revision|etag"
    r"|blake\w*"
    r"|pr[üu]fsumme|somme de contr[ôo]le|suma de)[^\n]{0,25}$",
    re.IGNORECASE,
)
_PUBLIC = re.compile(
    r"(?:public|[öo]ffentlich\w*|publique|p[úu]blica|primary|foreign|fingerprint)[ _\-]?\w{0,12}[^\w\n]{0,4}$",
    re.IGNORECASE,
)
_HEX = re.compile(r"[0-9a-fA-F\-]+")
_LONG_WORD = re.compile(r"[a-z]{8,}|[A-Z]{7,}")
_CHANGE = re.compile(r"[A-Za-z][0-9]|[0-9][A-Za-z]")


def private_keys(text: str) -> Iterator[Found]:
    """Yield PEM blocks of private keys, also one that was cut off."""
    last_end = text.rfind("-----END")
    position = 0
    while (match := _PEM_START.search(text, position)) is not None:
        end = text.find("-----END", match.end(), match.end() + _PEM_LONGEST) if match.end() <= last_end else -1
        if end >= 0:
            closing = text.find("-----", end + 8, end + 80)
            position = closing + 5 if closing >= 0 else end + 8
        else:
            body = _PEM_BODY.match(text, match.end())
            position = match.end() + (len(body.group().rstrip()) if body else 0)
        yield Found(match.start(), position, "key")


def prefixed(text: str) -> Iterator[Found]:
    """Yield keys and tokens that begin as their provider begins them, in headers too, and passwords within URLs."""
    for word in _LONG_WORD_OF_ANY.finditer(text):
        for match in _KEYS.finditer(text, word.start(), word.end()):
            if any(map(str.isdigit, match.group())) or match.group()[2] == "_":
                yield Found(match.start(), match.end(), "key")
        for match in _TOKENS.finditer(text, word.start(), word.end()):
            yield Found(match.start(), match.end(), "token")
    if "://" in text:
        for match in _IN_URL.finditer(text):
            if looks_chosen(match[1], sure=True):
                yield Found(match.start(1), match.end(1), "key")


def in_headers(text: str) -> Iterator[Found]:
    """Yield what stands behind `Authorization: Basic` or `Bearer`."""
    for match in _HEADER.finditer(text):
        if any(map(str.isdigit, match[1])):
            yield Found(match.start(1), match.end(1), "token")


def random_runs(text: str) -> Iterator[Found]:
    """Yield long runs of characters that a word before them, or their own disorder, gives away as a secret."""
    for match in _RUN.finditer(text):
        start, value = match.start(), match.group().rstrip(".-~%")
        if text.endswith("://", 0, start):  # of a URL, the last part of its path
            path, _, last = value.rpartition("/")
            start, value = start + len(path) + (len(path) > 0), last
            if len(value) < 16:
                continue
        for separator in ("=", "%3D"):
            name, found, rest = value.partition(separator)
            if found and len(rest) >= 16 and not value.endswith("="):
                start, value = start + len(name) + len(separator), rest
        kind = _kind_of(text, start, value)
        if kind is not None:
            yield Found(start, start + len(value), kind)


def _kind_of(text: str, start: int, value: str) -> Kind | None:
    before = text[max(0, start - 64) : start]
    named = _NAMED.search(before)
    if _DIGEST.search(before) or _PUBLIC.search(before):
        return None
    if named is None:
        return "key" if looks_random(value) else None
    if not (looks_random(value) or _is_dense(value)):
        return None
    return "token" if _TOKEN_NAMED.search(before) else "key"


def looks_random(value: str) -> bool:
    """Return whether a run of 28 characters or more mixes cases and digits as no name or path does."""
    if len(value) < 28 or _HEX.fullmatch(value) or value.count("/") > 4 or value.count(".") > 1:
        return False
    upper, lower, digits = (sum(map(test, value)) for test in (str.isupper, str.islower, str.isdigit))
    if min(upper, lower) < 4 or digits < 3 or _LONG_WORD.search(value):
        return False
    return len(_CHANGE.findall(value)) >= 3


def _is_dense(value: str) -> bool:
    """Whether digits and letters alternate often enough for a secret that a word announces."""
    digits = sum(map(str.isdigit, value))
    letters = sum(map(str.isalpha, value))
    if value.count("/") > 3 or value.count(".") > 2:
        return False
    return digits >= 3 and letters >= 3 and len(_CHANGE.findall(value)) >= 3
