"""The language of a text: right where it can be told, none rather than a wrong one."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everswarm.training.curation.language import UNDETERMINED, languages
from everswarm.training.curation.words import Words

REAL_FILE = Path(__file__).parents[3] / "shared" / "data" / "feedback-math.jsonl"
SENTENCES = {
    "en": [
        "Thank you, that is what I wanted to know.",
        "How are you today?",
        "Where does the train to Leeds leave from?",
    ],
    "de": ["Das ist nicht, was ich wissen wollte.", "Guten Tag, wie geht es dir?", "Wo ist hier der Bahnhof?"],
    "fr": ["Bonjour, ça va ?", "Je ne sais pas où elle est allée.", "L'eau bout à cent degrés dans cette région."],
    "es": ["Hola, ¿cómo estás?", "No sé dónde está el libro que compré ayer.", "¿Cuántos años tiene tu hermana?"],
    "it": ["Ciao, come stai?", "Non so dove sono le chiavi della macchina.", "Quanto costa questo libro?"],
    "pt": ["Olá, você está bem?", "Não sei onde ela foi, mas já volta.", "Muito obrigado pela sua ajuda."],
    "nl": ["Hallo, hoe gaat het met je?", "Ik weet niet waar het station is.", "Dit is een heel goed boek."],
    "pl": ["Cześć, jak się masz?", "Nie wiem, gdzie jest moja książka.", "To jest bardzo ładny dom."],
    "sv": ["Hej, hur mår du?", "Jag vet inte var boken är.", "Det här är mycket bättre än vad vi hade förut."],
    "da": [
        "Hvad hedder du, og hvor kommer du fra?",
        "Jeg ved ikke, hvad der er sket med mig.",
        "Det er noget meget godt.",
    ],
    "no": [
        "Hva heter du, og hvor kommer du fra?",
        "Jeg vet ikke hva som har skjedd med meg.",
        "Det er noe å tenke på.",
    ],
    "cs": [
        "Dobrý den, jak se máš?",
        "Nevím, kde je moje kniha, ale už ji hledám.",
        "To je velmi důležité, protože jsem tam nebyl.",
    ],
    "tr": ["Merhaba, nasılsın?", "Bu kitap çok güzel ama biraz pahalı.", "Yarın hava nasıl olacak?"],
    "fi": ["Hei, mitä sinä teet nyt?", "En tiedä, missä kirja on."],
    "hu": ["Nem tudom, hogy hol van a könyv.", "Ez egy nagyon szép ház."],
    "ro": ["Bună ziua, ce mai faci?", "Nu știu unde este cartea mea."],
    "id": ["Apa kabar? Saya tidak tahu di mana buku itu.", "Terima kasih, ini sangat membantu saya."],
    "vi": ["Xin chào, bạn có khỏe không?", "Tôi không biết quyển sách ở đâu."],
    "ru": ["Привет, как дела?", "Я не знаю, где моя книга.", "Спасибо, это очень помогло."],
    "uk": ["Привіт, як справи?", "Я не знаю, де моя книга, але вона є.", "Дякую, це дуже допомогло."],
    "ar": ["كيف حالك؟ أنا من مصر.", "لا أعرف أين الكتاب الذي كان هنا."],
    "fa": ["سلام، چطوری؟ من این کتاب را خوانده‌ام."],
    "el": ["Γεια σου, τι κάνεις;", "Δεν ξέρω."],
    "he": ["שלום, מה שלומך?", "אני לא יודע."],
    "hi": ["आप कैसे हैं?", "मुझे नहीं पता।"],
    "th": ["สวัสดีครับ", "ฉันไม่รู้ว่าหนังสืออยู่ที่ไหน"],
    "ko": ["안녕하세요?", "책이 어디에 있는지 모르겠어요."],
    "zh": ["你好吗?", "我不知道书在哪里。", "请用 print() 函数输出结果,然后再试一次。"],
    "ja": ["お元気ですか?", "本がどこにあるか分かりません。", "東京タワーは東京都港区にある。"],
}
WITHOUT_ONE = [
    "",
    "   ",
    "42",
    "Paris",
    "x = 3y + 2, y = 7",
    "∫ x² dx = x³/3 + C",
    "def add(a, b):\n    return a + b",
    "for (int i = 0; i < n; i++) { sum += a[i]; }",
    "SELECT d.name FROM instructor i JOIN department d ON i.dept = d.name",
    "α + β = γ",
    "🙂🙂🙂",
    "12 * 3 = 36\n36 / 4 = 9",
    "https://example.org/a/b?c=d",
]


def of(*texts: str | None) -> list[str]:
    return languages(Words(pl.Series(texts, dtype=pl.String))).to_list()


@pytest.mark.parametrize(("code", "text"), [(code, text) for code, texts in SENTENCES.items() for text in texts])
def test_short_sentence_has_its_language(code: str, text: str) -> None:
    assert of(text) == [code]


@pytest.mark.parametrize("text", WITHOUT_ONE)
def test_text_without_telling_words_has_none(text: str) -> None:
    assert of(text) == [UNDETERMINED]


def test_missing_text_has_none() -> None:
    assert of(None, "Thank you for your help.") == [UNDETERMINED, "en"]


def test_words_that_two_languages_share_are_a_tie() -> None:
    assert of("de") == [UNDETERMINED]
    assert of("men") == [UNDETERMINED]


def test_names_do_not_make_a_text_foreign() -> None:
    assert of("Ben is 4 * 2 = 8 years old. Kim is 8 * 3 = 24.")[0] in {"en", UNDETERMINED}
    assert of("Theo earns $10 x 2 = $20 per hour.")[0] in {"en", UNDETERMINED}


def test_quoted_words_of_another_script_do_not_decide() -> None:
    assert of("In Chinese you would say 你好 to the person that you meet.") == ["en"]


def test_letters_in_two_parts_count_as_one() -> None:
    assert of("Bonjour, c\u0327a va ?") == ["fr"]


def test_no_text_gives_no_language() -> None:
    assert of() == []


def test_batch_of_more_than_one_part_keeps_its_order() -> None:
    texts = [SENTENCES["de"][0], "42", SENTENCES["ru"][0]] * 400
    assert of(*texts) == ["de", UNDETERMINED, "ru"] * 400


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from([text for texts in SENTENCES.values() for text in texts] + WITHOUT_ONE) | st.text(max_size=40)
    ),
    st.integers(0, 20),
)
def test_language_of_a_text_does_not_depend_on_the_others(texts: list[str], cut: int) -> None:
    assert of(*texts) == of(*texts[:cut]) + of(*texts[cut:])


@pytest.mark.skipif(not REAL_FILE.exists(), reason="../shared/data/feedback-math.jsonl is not here")
def test_real_questions_are_english() -> None:
    with REAL_FILE.open(encoding="utf-8") as lines:
        questions = [json.loads(line)["messages"][-1]["content"] for line in lines]
    found = of(*questions)
    assert found.count("en") >= 0.99 * len(found)
