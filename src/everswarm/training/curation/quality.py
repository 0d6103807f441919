"""What is wrong with a target, as far as its text tells. In doubt nothing is: people wrote most of them.

Each problem is looked for in two passes: a cheap one over all texts, an exact one over the few that may have it.
"""

from __future__ import annotations

import re
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from everswarm.training.curation.words import Words

REFUSAL: Final = "refusal"
REPETITION: Final = "repetition"
CUT_SHORT: Final = "cut short"
GIBBERISH: Final = "gibberish"
ECHO: Final = "echo"
PROBLEMS: Final = (REFUSAL, REPETITION, CUT_SHORT, GIBBERISH, ECHO)  # the first that holds is reported

Flags = npt.NDArray[np.bool_]

_OPENING = 320  # characters in which a refusal must show itself
_LONG_REFUSAL = 700  # characters; a longer answer has something to say after its apology
_OPENS_LIKE_A_REFUSAL = (  # lower case; what all of `_REFUSALS` begin with
    r"^[\s\"“*]*(?:i\b|i'm|we\b|so sorry|very sorry|sorry|apolog|my apolog|unfortun|regret|as an? |es tut|tut mir"
    r"|entschuld|ich |leider|als |je |désol|malheur|en tant|lo siento|lo lamento|discul|lament|desafor|como |sinto"
    r"|descul|infeliz|mi dispiace|mi spiace|purtr|scusa|spiac|het spijt|helaas|przykro|przepr|niest"
    r"|извин|прост|к сожа|мне жаль|вибач|на жаль|很抱歉|非常抱歉|抱歉|对不起|對不起|作为|申し訳|すみません|죄송)"
)
_CANNOT = r"(?:can't|cannot|can not|(?:am|'m) unable to|(?:am|'m) not able to|won't|will not|must decline to)"
_TASK = (  # what is declined; 'I can't come to your party' declines no task
    r"(?:help(?:ing)?(?: you)?(?: out)?(?: with\b|[.,!;]|$)|assist|answer|provid|fulfil|comply"
    r"|complete (?:this|that|your)|generat|creat|writ|respond|engag|access|brows|giv(?:e|ing) (?:you|out|legal|medical)"
    r"|do (?:that|this)\b)"
)
_REFUSALS_IN = {  # lower case, straight apostrophes, from the start of the target
    "en": (
        r"(?:(?:i'm|i am) )?(?:so |very |really |truly )?(?:sorry|afraid|i apologi[sz]e|(?:my )?apologies|unfortunately"
        rf"|regrettably)[,.;:]?(?: that)?(?: but)?,? (?:as an? [^.\n]{{2,40}}, )?i ?{_CANNOT} (?:be able to )?{_TASK}",
        rf"i ?{_CANNOT} (?:(?:help|assist)(?: you)?(?: with (?:that|this|your request|such)|[.,!]|$)"
        r"|(?:answer|fulfill?|complete|comply with|provide|engage in|respond to) (?:that|this|your|such|any)\b)",
        r"(?:as|i am|i'm|i apologi[sz]e, but as) (?:just |only )?an? (?:ai|artificial intelligence"
        r"|(?:large )?language model|chatbot|virtual assistant)\b[^.\n]{0,60}[,.] (?:and |so |but )?i ?(?:\w+ )?"
        r"(?:can't|cannot|can not|don't|do not|am not|am unable|won't|'m not|'m unable|lack\b|have no\b)",
    ),
    "de": (
        r"(?:(?:es )?tut mir (?:sehr )?leid|entschuldigung|leider)[,.]?(?: aber)?,? "
        r"(?:ich kann|kann ich|ich darf|darf ich)\b[^.!?\n]{0,80}\b(?:nicht|keine?n?)\b[^.!?\n]{0,60}"
        r"\b(?:weiter)?(?:helfen|beantworten|bereitstellen|erstellen|erfüllen|geben)",
        r"ich kann (?:dir|ihnen) (?:leider )?(?:dabei |damit |hierbei )?(?:leider )?nicht (?:weiter)?helfen",
        r"als (?:reine |eine? )?(?:ki\b|künstliche intelligenz|sprachmodell)[^.\n]{0,60}\b(?:kann|habe|bin|darf) ich\b"
        r"[^.\n]{0,60}\b(?:nicht|keine?n?)\b",
    ),
    "fr": (
        r"(?:(?:je suis )?(?:vraiment )?désolée?|malheureusement)[,.]?(?: mais)?,? je ne (?:peux|puis|pourrai|suis) pas"
        r"(?: en mesure de?)? ?(?:vous |t'|d')?(?:aider|assister|répondre|fournir|donner|créer|écrire|générer|accéder)",
        r"en tant qu(?:e |')(?:modèle|intelligence|ia\b|assistant)[^.\n]{0,60}\bje (?:ne |n')[^.\n]{0,30}\bpas\b",
    ),
    "es": (
        r"(?:lo siento(?: mucho)?|lo lamento|disculp[ae]|lamentablemente|desafortunadamente)[,.]?(?: pero)?,? "
        r"no puedo ?(?:ayudar|asistir|responder|proporcionar|crear|escribir|generar|acceder|cumplir|ofrecer)",
        r"como (?:una? )?(?:ia\b|inteligencia artificial|modelo de (?:lenguaje|ia))[^.\n]{0,60}"
        r"\bno (?:puedo|tengo|soy)\b",
    ),
    "pt": (
        r"(?:sinto muito|desculp[ae]|lamento|infelizmente)[,.]?(?: mas)?,? (?:eu )?não (?:posso|consigo) ?"
        r"(?:ajudar|ajudá|responder|fornecer|criar|escrever|gerar|acessar)",
        r"como (?:uma? )?(?:ia\b|inteligência artificial|modelo de linguagem)[^.\n]{0,60}\bnão (?:posso|tenho|sou)\b",
    ),
    "it": (
        r"(?:mi dispiace|mi spiace|purtroppo|scusa|spiacente)[,.]?(?: ma)?,? non (?:posso|sono in grado di) ?"
        r"(?:aiutar|assister|risponder|fornir|crear|scriver|generar|acceder)",
    ),
    "nl": (
        r"(?:sorry|het spijt me|helaas)[,.]?(?: maar)?,? (?:ik kan|kan ik)\b[^.!?\n]{0,60}\bniet\b[^.!?\n]{0,40}"
        r"\b(?:helpen|beantwoorden|geven|verstrekken|voldoen)",
    ),
    "pl": (
        r"(?:przykro mi|przepraszam|niestety)[,.]?(?: ale)?,? nie mogę(?: ci| panu| pani)? "
        r"(?:pomóc|odpowiedzieć|udzielić|podać)",
    ),
    "ru": (
        r"(?:извините|простите|к сожалению|мне жаль)[,.]?(?: но)?,? я не могу(?: вам| тебе)? "
        r"(?:помочь|ответить|предоставить|выполнить)",
    ),
    "uk": (r"(?:вибачте|на жаль)[,.]?(?: але)?,? я не можу(?: вам| тобі)? (?:допомогти|відповісти|надати|виконати)",),
    "zh": (
        r"(?:很|非常)?(?:抱歉|对不起|對不起)[,，。!！]?\s?(?:但是?)?(?:作为[^。\n]{2,30}[,，])?我(?:无法|不能|無法|没办法)"
        r"(?:回答|提供|帮助|幫助|协助|完成|满足|生成|创建|处理|讨论)",
        r"作为(?:一个|一名)?(?:人工智能|ai|语言模型|大语言模型)[^。\n]{0,40}我?(?:无法|不能|没有)",
    ),
    "ja": (
        r"(?:申し訳(?:ありません|ございません)|すみません)[^\n]{0,60}(?:お答え|お手伝い|提供)[^。\n]{0,8}できません",
    ),
    "ko": (r"죄송(?:합니다|하지만)[^\n]{0,60}(?:도와드릴|답변|제공)[^.\n]{0,16}(?:수 없|어렵)",),
}
_REFUSALS = re.compile(r"[\s\"“*]*(?:" + "|".join(one for many in _REFUSALS_IN.values() for one in many) + ")")
_SPEAKS_FOR_ANOTHER = (  # questions whose answers may be a refusal of somebody else's
    r"(?i)translat|übersetz|tradui|traduc|rewrite|rephrase|paraphras|correct|reply|respond|dialog|refus|declin|apolog"
    r"|customer|sentence|antworte"
)
_HELPS = re.compile(  # an answer that declines one thing and does another
    r"```|\n\s*(?:1[.)]|[-*•]) |\bhere(?:'s| is| are) |\b(?:but|however|instead)\b[^.\n]{0,20}"
    r"\b(?:i can(?!['no])|you can(?!['no])|you could|try\b)"
    r"|\bhier (?:ist|sind)\b|\bvoici\b|\baquí (?:tienes?|está)|\becco\b"
)

_CODE_OR_TABLE = (
    r"```|(?m:^\s*\|.*\|\s*$)|(?m:[;{}]\s*$)|\\begin\{"
    r"|(?m:^\s*(?:def |class |import |from \w+ import|#include|<\w+|print\())"
)
_ASKS_TO_REPEAT = (
    r"(?i)repeat|[0-9] times|wiederhol|[0-9] ?mal(?-u:\b)|répét|[0-9] fois|repet|repit|[0-9] veces|[0-9] volte|[0-9]次"
)
_LOOP_WORDS = 8  # in a row that must come again, so that a table or a counting song is no loop
_LOOP_LEAST = 24  # such runs a text must have
_LOOP_SHARE = 0.6  # of its runs that come again after the same distance
_BUCKETS = 4096  # in which the distinct pairs of words of a text are roughly counted
_BUCKET_SHIFT = np.uint64(52)  # leaves the number of a bucket
_PAIR = np.uint64(0x9E3779B97F4A7C15)
_TEXTS_AT_ONCE = 500  # small enough that what is counted stays in the processor's cache

_LONG = 200  # characters from which the end of a text tells that it is no end
_DANGLING = (
    r"\s(?:the|and|of|because|your|their|our|und|oder|et|des|de|pero|и|или|або)$"  # 'to', 'du', 'or' end sentences
)
_OPEN_END = r"[(\[{„]$|\([^()\[\]\n]{0,80}[^()\[\]\n.!?…。]$"
_EMOTICON_END = r"[:;=8xX]['-]?[(\[{]+$"
_HYPHEN_END = r"[a-zà-ÿ]{2}-$"
_COMMA_END = r"[^\n]{40}[,，、]$"  # in a line of its own length, unlike 'Yours sincerely,'

_BROKEN = "[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f\u0080-\u009f\ufffd]|Ã[\u00a0-\u00bf]|â€|Â[\u00a0-\u00bf]"
_BROKEN_LEAST = 3  # places that were decoded wrongly, or control characters
_BROKEN_EVERY = 100  # characters there is one
_SAYING = r"[\p{L}\p{M}\p{N}\p{S}\p{Co}]"  # letters, digits; signs of mathematics, emoji, drawings
_MORSE = r"^[.\-–—−·•_/|\s]*$"
_SAYING_LEAST = 0.05  # of a text of `_SILENT_LONG` characters
_SILENT_LONG = 40
_MASHED = (  # a run along the keyboard, or consonants alone
    r"^[a-z]{6,}$",
    r"asdf|sdfg|dfgh|fghj|ghjk|hjkl|lkjh|kjhg|jhgf|hgfd|gfds|fdsa|qwer|rtyu|tyui|uiop|poiu|zxcv|xcvb|cvbn|vbnm"
    r"|[bcdfghjklmnpqrstvwxz]{6}",
    r"^(?:qwert[yz](?:uiop)?|[acgtu]+|[mdclxvi]+)$|sch|st",  # keyboards' names, genes, Roman numbers, German
)
_MASHED_SHARE = 0.6  # of the words of four letters and more
_MASHED_ALONE = 12  # letters of a single word
_ECHO_WORDS = 5  # fewer may be said back: 'How are you?'


def problems(questions: pl.Series, targets: pl.Series, words: Words) -> pl.Series:
    """Return the first of `PROBLEMS` that each target has, null where it has none; `words` are those of `targets`."""
    asked = questions.fill_null("")
    given = targets.fill_null("").str.strip_chars()
    found: npt.NDArray[np.object_] = np.full(len(given), None, dtype=object)
    found[_echoes(asked, given)] = ECHO
    found[_is_gibberish(given, words)] = GIBBERISH
    found[_is_cut_short(given)] = CUT_SHORT
    found[_is_repetition(asked, given, words)] = REPETITION
    found[_is_refusal(asked, given)] = REFUSAL
    return pl.Series("problem", found.tolist(), dtype=pl.String)


def _is_refusal(questions: pl.Series, targets: pl.Series) -> Flags:
    opening = targets.str.head(_OPENING).str.to_lowercase()
    likely = _flags(opening.str.contains(_OPENS_LIKE_A_REFUSAL) & (targets.str.len_chars() <= _LONG_REFUSAL))
    for index in np.flatnonzero(likely):
        text = targets[int(index)].lower().replace("’", "'")
        likely[index] = _REFUSALS.match(text[:_OPENING]) is not None and _HELPS.search(text) is None
    declining = np.flatnonzero(likely)
    likely[declining] = ~_flags(questions.gather(declining).str.contains(_SPEAKS_FOR_ANOTHER))
    return likely


def _is_repetition(questions: pl.Series, targets: pl.Series, words: Words) -> Flags:
    likely = _few_distinct_pairs(words)
    looping = np.flatnonzero(likely)
    texts = targets.gather(looping)
    loops = _loops(Words(texts)) & ~_flags(texts.str.contains(_CODE_OR_TABLE))
    likely[looping] = loops & ~_flags(questions.gather(looping).str.contains(_ASKS_TO_REPEAT))
    return likely | _is_one_long_cry(targets, words)


def _few_distinct_pairs(words: Words) -> Flags:
    """Return which texts may be loops: `_loops` needs as many runs, and so pairs of words, that come again."""
    distinct = np.zeros(len(words.counts), dtype=np.int64)
    for start in range(0, len(words.counts), _TEXTS_AT_ONCE):
        counts = words.counts[start : start + _TEXTS_AT_ONCE]
        first = np.repeat(np.arange(len(counts)), counts)
        seen = np.zeros((len(counts), _BUCKETS), dtype=np.bool_)
        inside = first[1:] == first[:-1]  # both words of a pair are of one text
        hashes = words.hashes[words.offsets[start] : words.offsets[start + len(counts)]]
        buckets = ((hashes[:-1] + _PAIR * hashes[1:]) >> _BUCKET_SHIFT).astype(np.int64)
        seen[first[:-1][inside], buckets[inside]] = True
        distinct[start : start + len(counts)] = np.count_nonzero(seen, axis=1)
    runs = words.counts - _LOOP_WORDS + 1
    few: Flags = (runs >= _LOOP_LEAST) & (distinct < words.counts - _LOOP_SHARE * runs)
    return few


def _loops(words: Words) -> Flags:
    """Return which texts say the same again and again: most runs of words come again after the same distance."""
    numeric = np.fromiter((word.isdecimal() for word in words.vocabulary), np.bool_, len(words.vocabulary))
    text_of_word = np.repeat(np.arange(len(words.counts)), words.counts)
    numbers = np.bincount(text_of_word[numeric[words.codes]], minlength=len(words.counts))
    grams = words.grams(_LOOP_WORDS)
    runs = np.diff(grams.offsets)
    texts = np.repeat(np.arange(len(runs)), runs)
    order = np.lexsort((grams.hashes, texts))  # stable: the same run of a text in the order of its places
    again = (np.diff(texts[order]) == 0) & (grams.hashes[order][1:] == grams.hashes[order][:-1])
    distances = np.stack([texts[order][1:][again], np.diff(order)[again]])
    pairs, times = np.unique(distances, axis=1, return_counts=True)
    most = np.zeros(len(runs), dtype=np.int64)
    np.maximum.at(most, pairs[0], times)
    loops: Flags = (most > _LOOP_SHARE * runs) & (2 * numbers <= words.counts)
    return loops


def _is_one_long_cry(targets: pl.Series, words: Words) -> Flags:
    """Return which texts are mostly one word of a letter or two, such as 'hahaha' over a line."""
    cries = [
        code for code, word in enumerate(words.vocabulary) if len(word) >= 50 and word.isalpha() and len(set(word)) < 3
    ]
    flags = np.zeros(len(targets), dtype=np.bool_)
    places = np.flatnonzero(np.isin(words.codes, cries)) if cries else np.array([], dtype=np.int64)
    for place in places:
        text = int(np.searchsorted(words.offsets, place, side="right")) - 1
        flags[text] |= len(words.vocabulary[words.codes[place]]) > _LOOP_SHARE * len(targets[text])
    return flags


def _is_cut_short(targets: pl.Series) -> Flags:
    end = targets.str.tail(100)
    open_end = end.str.contains(_OPEN_END) & ~end.str.contains(_EMOTICON_END)
    no_end = end.str.contains(_DANGLING) | end.str.contains(_HYPHEN_END) | end.str.contains(_COMMA_END) | open_end
    likely = _flags(no_end & (targets.str.len_chars() >= _LONG))
    ended = np.flatnonzero(likely)
    likely[ended] = ~_flags(targets.gather(ended).str.contains(_CODE_OR_TABLE))
    fenced = np.flatnonzero(_flags(targets.str.contains("```", literal=True)))
    texts = targets.gather(fenced)
    likely[fenced] |= _flags(texts.str.count_matches("```", literal=True) % 2 == 1) & _flags(
        texts.str.count_matches(r"(?m)^\s*```") % 2 == 1
    )
    return likely


def _is_gibberish(targets: pl.Series, words: Words) -> Flags:
    likely = _flags(targets.str.contains(_BROKEN))
    suspects = np.flatnonzero(likely)
    texts = targets.gather(suspects)
    places = texts.str.count_matches(_BROKEN)
    likely[suspects] = _flags((places >= _BROKEN_LEAST) & (places * _BROKEN_EVERY >= texts.str.len_chars()))
    return likely | _says_nothing(targets, words) | _is_mashed(words)


def _says_nothing(targets: pl.Series, words: Words) -> Flags:
    """Return which long texts have hardly any letter, digit or sign."""
    length = targets.str.len_chars().to_numpy()
    likely: Flags = (length >= _SILENT_LONG) & (words.counts <= _SAYING_LEAST * length)
    suspects = np.flatnonzero(likely)
    texts = targets.gather(suspects)
    says = texts.str.count_matches(_SAYING).to_numpy() > _SAYING_LEAST * length[suspects]
    drawn = _flags(
        texts.str.contains("\n", literal=True) | (texts.str.contains(_MORSE) & texts.str.contains(r"\. ?[-–—−]"))
    )
    likely[suspects] = ~says & ~drawn
    return likely


def _is_mashed(words: Words) -> Flags:
    """Return which texts are mostly keys struck at random."""
    vocabulary = pl.Series(words.vocabulary, dtype=pl.String)
    form, run, known = (_flags(vocabulary.str.contains(pattern)) for pattern in _MASHED)
    mashed = form & run & ~known
    flags = np.zeros(len(words.counts), dtype=np.bool_)
    if not mashed.any():
        return flags
    places = np.flatnonzero(mashed[words.codes])
    for text in np.unique(np.searchsorted(words.offsets, places, side="right") - 1):
        codes = words.codes[words.offsets[text] : words.offsets[text + 1]]
        long = [code for code in codes if len(words.vocabulary[code]) >= 4]
        struck = [code for code in long if mashed[code]]
        alone = len(words.vocabulary[struck[0]]) >= _MASHED_ALONE
        flags[text] = len(struck) >= _MASHED_SHARE * len(long) and (len(struck) > 1 or (alone and len(codes) == 1))
    return flags


def _echoes(questions: pl.Series, targets: pl.Series) -> Flags:
    """Return which targets are the question but for case, spaces and punctuation."""
    asked, given = questions.str.len_chars(), targets.str.len_chars()
    likely = _flags((asked <= given * 1.25 + 8) & (given <= asked * 1.25 + 8) & (given >= 2 * _ECHO_WORDS))
    likely &= _flags(_beginning(questions) == _beginning(targets))
    alike = np.flatnonzero(likely)
    plain = [
        texts.gather(alike).str.to_lowercase().str.replace_all(r"[^\p{L}\p{M}\p{N}]+", " ").str.strip_chars()
        for texts in (questions, targets)
    ]
    likely[alike] = _flags((plain[0] == plain[1]) & (plain[1].str.count_matches(" ", literal=True) >= _ECHO_WORDS - 1))
    return likely


def _beginning(texts: pl.Series) -> pl.Series:
    return texts.str.head(40).str.strip_chars_start(" \t\r\n\"'“„«»*#>-_¿¡").str.head(8).str.to_lowercase()


def _flags(series: pl.Series) -> Flags:
    flags: Flags = series.to_numpy(writable=True).astype(np.bool_, copy=False)
    return flags
