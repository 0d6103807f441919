"""The language of texts: by their script where that decides, else by the small words that every sentence needs.

A text without enough of those words, such as mathematics, code or a list of names, has none: `und`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from everswarm.training.curation.words import Words

UNDETERMINED = "und"

_FUNCTION_WORDS = {  # without i, j, n, which programs count with
    "en": (
        "the of and to that is was it for with as his on be at by this had not are but from or have which one you "
        "were her all she there would their we him been has when who will more no if out so said what its about into "
        "than them can only other some could these two may then do my over such our me most after also did many "
        "before must through how where your they he an don doesn isn ve ll hello thanks please yes each every because "
        "total answer should here why am a year years old day days week weeks hours per time cost much make get got "
        "buy left need needs equal find first next like men once come us being any same both few those while during "
        "without within between good well never let's took"
    ),
    "de": (
        "der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es an werden aus er "
        "hat dass sie nach wird bei einer um am sind noch wie einem über einen so zum war haben nur oder aber vor zur "
        "bis mehr durch man sein wurde ich wir ihr kann was wenn hier mich dir mir dich wo warum danke bitte hallo "
        "guten ja nein gut sehr diese dieser dieses kein keine schon geht habe hast mein dein unser viele gibt immer "
        "jeder"
    ),
    "fr": (
        "le de la les et des en un une du dans est que qui pour par sur au il pas plus ne se sont avec ce cette ou "
        "son sa ses aux été mais comme nous vous ils elle elles leur leurs être fait on je tu moi toi ça ont tout "
        "tous bien très sans peut entre deux aussi même donc alors où quand comment pourquoi quel quelle bonjour "
        "merci oui non suis êtes avez l d c qu y à va chez cela ces votre notre mon ma mes"
    ),
    "es": (
        "el la de que y en un una los las del se con por para es no su al lo como más pero sus le ya o este sí porque "
        "esta entre cuando muy sin sobre también me hasta hay donde quien desde todo nos durante todos uno les ni "
        "contra otros ese eso ante ellos esto mí antes algunos qué unos yo otro son fue tiene está están ser hola "
        "gracias cómo cuál dónde eres estás soy tengo puede hace usted mi tu buenos días cada si a e"
    ),
    "it": (
        "di e il la che in a un una per è non sono con del della le lo gli al alla da dei delle nel nella si come "
        "anche più ma o se questo questa ha ho hai hanno essere stato cosa molto dal dalla sul sulla ci mi ti suo sua "
        "loro quando dove perché tutto tutti ogni però quindi ciao grazie buongiorno sei siamo può fare così chi "
        "quale già c l degli dell nell"
    ),
    "pt": (
        "de a o que e do da em um uma para com não os as no na se por mais dos como mas ao ele das à seu sua ou "
        "quando muito nos já eu também só pelo pela até isso ela entre depois sem mesmo aos seus quem nas me esse "
        "eles você essa num nem suas meu minha têm foi são está ser tem há olá obrigado obrigada bom dia sim estou "
        "vai onde porque qual isto então"
    ),
    "nl": (
        "de het een en van is in dat op te zijn met voor niet aan er om ook als dan maar bij door uit naar wordt deze "
        "dit die of hij zij ze we wij ik je jij u heeft hebben had worden werd over tot tegen onder nog geen meer wel "
        "wat waar hoe waarom wie kan kunnen moet zal zou zo mijn jouw hun haar goed veel alle iets niets hallo dank "
        "bedankt ja nee gaat"
    ),
    "pl": (
        "w z na do nie się że to jest o jak a od po za co ale czy przez tylko ten ta te tego tej tym są był była było "
        "być dla już jego jej ich oraz lub może można które który która także bardzo gdy kiedy gdzie dlaczego ja ty "
        "my wy on ona oni mnie cię mi ci pan cześć dziękuję proszę tak przy pod nad ze we bo więc każdy ma mam masz "
        "jestem"
    ),
    "sv": (
        "och att det som en på är av för med den till inte har de om ett han men var jag sig från vi så kan när nu "
        "ska skulle eller hade efter under vad mycket där här mot bara sin alla över kommer hej tack du dig mig hur "
        "varför vilken också ut upp blir blev vara någon något än deras hans hon varje ja nej mår"
    ),
    "da": (
        "og at det som en på er af for med den til ikke har de om et han men var jeg sig fra vi så kan når nu skal "
        "skulle eller havde efter under hvad meget der her mod kun sin alle over kommer hej tak du dig mig hvordan "
        "hvorfor hvilken også ud op bliver blev være nogen noget end deres hans hun hver ja nej blive vil hvis mange "
        "mellem"
    ),
    "no": (
        "og at det som en på er av for med den til ikke har de om et han men var jeg seg fra vi så kan når nå skal "
        "skulle eller hadde etter under hva mye der her mot bare sin alle over kommer hei takk du deg meg hvordan "
        "hvorfor hvilken også ut opp blir ble være noen noe enn deres hans hun hver ja nei å bli vil hvis mange "
        "mellom ett"
    ),
    "fi": (
        "ja on ei se että oli en hän joka mutta ovat kun myös niin kuin sen tai jos hänen minä sinä mitä missä miten "
        "miksi olen olet ole vain nyt vielä sitten kanssa mukaan siitä tämä tämän nämä voi kaikki hyvä hei kiitos "
        "jotka jonka sekä jokaisella olla hyvin paljon"
    ),
    "cs": (
        "a v se na je že s z do o to k ve pro za by ale si po jako od jsou které který která jeho jen nebo jsem už "
        "byl byla bylo být má také když co tak při před jak kde proč jsi já ty my vy on ona oni mě mi ti prosím "
        "děkuji dobrý den ahoj není aby pod nad mezi každý máš velmi více může však ji jí vím nevím moje tady ještě "
        "jsme jste protože nebyl nebyla těm něco"
    ),
    "sk": (
        "a v sa na je že s z do o to k vo pre za by ale si po ako od sú ktoré ktorý ktorá jeho len alebo som už bol "
        "bola bolo byť má tiež keď čo tak pri pred kde prečo ja ty my vy on ona oni ma mi ti prosím ďakujem dobrý deň "
        "ahoj nie aby medzi každý veľmi viac môže však ju viem neviem moja tu ešte sme ste pretože nebol nebola niečo"
    ),
    "hu": (
        "a az és hogy nem is egy van ez meg de csak volt már ha még el mint vagy én te ő mi azt ezt itt ott nagyon "
        "minden mert lesz kell jó igen köszönöm szia ki miért hogyan hol akkor után való által joga szerint pedig sem"
    ),
    "ro": (
        "de și în a la cu o că nu pe este din un care mai pentru sunt se ce au prin sau dar după fi fost cum unde "
        "când eu tu el ea noi voi ei lui lor dacă foarte bine mulțumesc bună ziua da între orice fiecare dintre să "
        "cel ale al"
    ),
    "tr": (
        "ve bir bu da de için ile çok ne o gibi daha olarak ama var olan en ben sen biz siz onlar kadar sonra değil "
        "mi mı mu mü her şey nasıl neden nerede kim hangi ya veya ki olduğu olur oldu evet hayır merhaba teşekkürler "
        "lütfen iyi göre ise içinde böyle şu diye yok"
    ),
    "id": (
        "yang dan di ini itu dengan untuk tidak adalah dari akan pada juga saya anda apa bagaimana ada bisa kami kita "
        "mereka atau karena ke dalam oleh sebagai dapat telah sudah lebih hanya seperti kamu dia aku halo terima "
        "kasih tolong mengapa siapa kapan dimana setiap orang bahwa secara kabar baik satu"
    ),
    "vi": (
        "và của là có không được cho trong một người với các những này đã để khi từ về như đó nhưng cũng tôi bạn anh "
        "chị rất gì nào đâu sao vì xin chào cảm ơn đến ra vào thì mà phải làm mọi quyền theo hay"
    ),
    "ru": (
        "и в не на я что он с как это по но они мы все она так его за был от то же бы у вы из ему до было мне или "
        "если только ее её для к меня когда о нет да ты уже вот есть при чтобы быть где почему кто какой привет "
        "спасибо пожалуйста дела может также который которые чем этот эта каждый очень"
    ),
    "uk": (
        "і в не на я що він з як це по але вони ми все вона так його за був від то ж би у ви із йому до було мені або "
        "якщо тільки її для мене коли про ні ти вже ось є при щоб бути де чому хто який привіт дякую будь справи може "
        "також та й цей ця кожний дуже має"
    ),
    "bg": (
        "и в не на че е да се с от за по са като но той ще във до това си ли беше или тя ние вие те аз ти няма има "
        "може който която които съм при към така също само здравей благодаря моля как какво къде защо със всеки много "
        "бъде"
    ),
    "ar": (
        "في من على أن إلى هذا هذه التي عن مع لا ما كان هو هي الذي ذلك كل أو ثم قد لم لن إن كيف أين متى لماذا هل نعم "
        "أنا أنت نحن هم بعد قبل عند بين و يا"
    ),
    "fa": (
        "از به که این را با است در آن برای یک تا هم بود شد می ها های خود ما شما من او چه چرا کجا چگونه هر یا اگر نیز "
        "باید بر و سلام"
    ),
    "ur": "کے کی ہے میں اور سے کا کو پر نے ہیں یہ وہ کہ اس نہیں بھی تو ایک ہو کر جو آپ کیا تھا لیے",
}
_LETTERS = {  # that other languages of the same script hardly use
    "de": "ß",
    "es": "ñ",
    "fr": "œ",
    "pt": "ãõ",
    "pl": "ąęłńśźż",
    "cs": "ěřů",
    "sk": "ľĺŕ",
    "hu": "őű",
    "ro": "ășțţ",
    "tr": "ğış",
    "da": "æøå",
    "no": "æøå",
    "vi": "ơưạảấầẩẫậắằẳẵặẹẻẽếềểễệỉịọỏốồổỗộớờởỡợụủứừửữựỳỵỷỹ",
    "ru": "ыэё",
    "uk": "іїєґ",
    "fa": "پچژگک",
    "ur": "ٹڈڑںےہ",
    "sv": "å",
}
_WEAK = (  # programs, formulas, names or English hold them too
    "after al ale all also am and anda ante as at bar bara ben bez bin bo bu by ca can case chi cho come da dan de "
    "def des di die do don du due each ei el else end era fare fin for from gut ha hay hej her hun if in int is it ja "
    "kai ki kim la le let ll ma male man me men mes mi my nad new ni no nos not oh on one or os out over pa pan par "
    "per pod point pro re return san se sei seit select ser si sia sin so sole son su sur tak tem ten that then theo "
    "this ti to ton total tu um under va van var ve via void war wer where while with"
)
_FAMILIES = {
    "latin": (
        "en",
        "de",
        "fr",
        "es",
        "it",
        "pt",
        "nl",
        "pl",
        "sv",
        "da",
        "no",
        "fi",
        "cs",
        "sk",
        "hu",
        "ro",
        "tr",
        "id",
        "vi",
    ),
    "cyrillic": ("ru", "uk", "bg"),
    "arabic": ("ar", "fa", "ur"),
}
_ALONE = {"greek": "el", "hebrew": "he", "devanagari": "hi", "thai": "th", "hangul": "ko", "han": "zh", "kana": "ja"}
_SCRIPTS = ("", *_FAMILIES, *_ALONE)
_SCRIPT_FROM = (  # code point of its first letter; a word has the script of its first character
    (0x0, ""),
    (0x61, "latin"),
    (0x7B, ""),
    (0xC0, "latin"),
    (0x250, ""),
    (0x370, "greek"),
    (0x400, "cyrillic"),
    (0x530, ""),
    (0x590, "hebrew"),
    (0x600, "arabic"),
    (0x700, ""),
    (0x900, "devanagari"),
    (0x980, ""),
    (0xE00, "thai"),
    (0xE80, ""),
    (0x1100, "hangul"),
    (0x1200, ""),
    (0x1E00, "latin"),
    (0x1F00, "greek"),
    (0x2000, ""),
    (0x3040, "kana"),
    (0x3100, "han"),
    (0xA000, ""),
    (0xAC00, "hangul"),
    (0xD7B0, ""),
    (0xF900, "han"),
    (0xFB00, ""),
    (0x20000, "han"),
    (0x32000, ""),
)
_SIZE_OF_CHARACTER = {"han": 0.6, "kana": 0.5, "thai": 0.25}  # in words, where each character counts as one
_FULL = 12  # evidence of a word that one language has; shared in equal parts where several have it
_FAINT = 2  # evidence, at most, of a word of `_WEAK`
_LEAST = 6  # evidence without which a text has no language
_LEAST_A_WORD = 0.7  # evidence a word; prose has 2 to 5
_AHEAD = 1.15  # times the evidence of the second that the first must have
_TEXTS_AT_ONCE = 500  # small enough that what is counted stays in the processor's cache
_LEAST_KANA = 0.05  # for each Han character, in Japanese; Chinese has none

Codes = npt.NDArray[np.object_]
Sizes = npt.NDArray[np.float64]
Sums = npt.NDArray[np.int64]


class _Evidence(NamedTuple):
    """What words say for each language: rows of numbers, the first all 0, and the row of a word or a letter."""

    rows: npt.NDArray[np.uint8]  # (rows, languages)
    of_word: dict[str, int]
    of_letter: dict[str, int]


def languages(words: Words) -> pl.Series:
    """Return the ISO 639-1 code of each text; `und` where too few words tell, or two languages tie."""
    table = _table()
    rows = np.fromiter((_row(word, table) for word in words.vocabulary), np.int16, len(words.vocabulary))
    scripts = _script_of_each(words.vocabulary)
    found: list[str] = []
    for start in range(0, len(words.counts), _TEXTS_AT_ONCE):
        counts = words.counts[start : start + _TEXTS_AT_ONCE]
        codes = words.codes[words.offsets[start] : words.offsets[start + len(counts)]]
        size = _words_by_script(scripts[codes], counts)
        evidence = _evidence_by_language(rows[codes], counts, table)
        found += _languages_of(size, evidence).tolist()
    return pl.Series("language", found, dtype=pl.String)


def _languages_of(size: Sizes, evidence: Sums) -> Codes:
    """Return the codes of texts from their words by script and their evidence by language."""
    script = size.argmax(axis=1)  # the first, which is none, where all are 0
    codes: Codes = np.full(len(script), UNDETERMINED, dtype=object)
    for name, code in _ALONE.items():
        codes[script == _SCRIPTS.index(name)] = code
    kana, han = size[:, _SCRIPTS.index("kana")], size[:, _SCRIPTS.index("han")]
    codes[(codes == "zh") & (kana > _LEAST_KANA * han)] = "ja"
    first = 0
    for name, members in _FAMILIES.items():
        own = script == _SCRIPTS.index(name)
        if own.any():
            codes[own] = _most_evident(evidence[own, first : first + len(members)], size[own].max(axis=1), members)
        first += len(members)
    return codes


def _most_evident(evidence: Sums, size: Sizes, members: Sequence[str]) -> Codes:
    """Return the language with most evidence (texts, members), where it is enough for `size` words."""
    ranked = np.sort(evidence, axis=1)
    most, second = ranked[:, -1], ranked[:, -2]
    told = (most >= _LEAST) & (most >= _LEAST_A_WORD * size) & (most > _AHEAD * second)
    codes: Codes = np.array(members, dtype=object)[evidence.argmax(axis=1)]
    codes[~told] = UNDETERMINED
    return codes


def _script_of_each(vocabulary: Sequence[str]) -> npt.NDArray[np.int8]:
    """Return the script of each word; single letters of an alphabet have none, as they may be variables."""
    starts = np.array([start for start, _ in _SCRIPT_FROM])
    named = np.array([_SCRIPTS.index(script) for _, script in _SCRIPT_FROM], dtype=np.int8)
    first = np.fromiter((ord(word[0]) for word in vocabulary), np.int64, len(vocabulary))
    scripts: npt.NDArray[np.int8] = named[np.searchsorted(starts, first, side="right") - 1]
    single = np.fromiter((len(word) == 1 for word in vocabulary), np.bool_, len(vocabulary))
    of_alphabet = np.array([name not in _SIZE_OF_CHARACTER for name in _SCRIPTS])
    scripts[single & of_alphabet[scripts]] = 0
    return scripts


def _words_by_script(scripts: npt.NDArray[np.int8], counts: npt.NDArray[np.int64]) -> Sizes:
    """Return how many words of each script each text has (texts, scripts); 0 of no script."""
    cells = np.repeat(np.arange(len(counts)) * len(_SCRIPTS), counts) + scripts
    counted = np.bincount(cells, minlength=len(counts) * len(_SCRIPTS)).reshape(-1, len(_SCRIPTS))
    size: Sizes = counted * np.array([_SIZE_OF_CHARACTER.get(name, 1.0 if name else 0.0) for name in _SCRIPTS])
    return size


def _evidence_by_language(rows: npt.NDArray[np.int16], counts: npt.NDArray[np.int64], table: _Evidence) -> Sums:
    """Return the evidence for each language in each text (texts, languages)."""
    telling = np.flatnonzero(rows)
    texts = np.repeat(np.arange(len(counts)), counts)[telling]
    starts = np.flatnonzero(np.diff(texts, prepend=-1))
    sums: Sums = np.zeros((len(counts), table.rows.shape[1]), dtype=np.int64)
    if len(starts):
        sums[texts[starts]] = np.add.reduceat(table.rows[rows[telling]], starts, axis=0, dtype=np.int64)
    return sums


def _row(word: str, table: _Evidence) -> int:
    if word.isascii():
        return table.of_word.get(word, 0)
    word = unicodedata.normalize("NFC", word)
    known = table.of_word.get(word)
    if known is not None:
        return known
    return max((table.of_letter.get(letter, 0) for letter in word), default=0)


@cache
def _table() -> _Evidence:
    """Return the evidence of each function word and each telling letter."""
    faint = frozenset(_WEAK.split())
    order = [language for members in _FAMILIES.values() for language in members]
    lists = {language: set(_FUNCTION_WORDS[language].split()) for language in order}
    letters = {language: set(_LETTERS.get(language, "")) for language in order}
    rows = [[0] * len(order)]
    of_word: dict[str, int] = {}
    for word in sorted(set[str]().union(*lists.values())):
        of_word[word] = len(rows)
        rows.append(_shared([word in lists[language] for language in order], most=_most(word, faint)))
    of_letter: dict[str, int] = {}
    for letter in sorted(set[str]().union(*letters.values())):
        of_letter[letter] = len(rows)
        rows.append(_shared([letter in letters[language] for language in order], most=_FULL))
    return _Evidence(np.array(rows, dtype=np.uint8), of_word, of_letter)


def _most(word: str, faint: frozenset[str]) -> int:
    if len(word) == 1 and word.isascii():
        return 1
    return _FAINT if word in faint else _FULL


def _shared(has: list[bool], *, most: int) -> list[int]:
    return [min(most, _FULL // sum(has)) if one else 0 for one in has]
