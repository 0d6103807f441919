"""The estimate of a prompt: rather too much than too little, and not far too much."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from everswarm.server.gateway.prompt_size import ATTACHMENT_TOKENS, estimate_prompt_tokens
from everswarm.settings import EMBEDDED_MODEL, load_settings
from everswarm.training.models import student_weights

ENGLISH = (
    "The old harbour town wakes before the sun does. Fishermen drag their nets over wet stones, gulls quarrel above "
    "the roofs, and in the bakery at the corner somebody has been kneading dough since three. When the first ferry "
    "comes in, its horn is answered by a dog that has answered it for eleven years. Nobody remembers who gave it a "
    "name. Would you like to stay for the winter? It is quiet then, and the rooms are cheap; but the wind never stops."
)
CODE = (
    "def merge(left: list[int], right: list[int]) -> list[int]:\n    result = []\n    while left and right:\n"
    "        smaller = left if left[0] <= right[0] else right\n        result.append(smaller.pop(0))\n"
    "    return result + left + right\n\nassert merge([1, 4, 9], [2, 3]) == [1, 2, 3, 4, 9]  # O(n + m)\n"
)
OTHERS = {
    "chinese": "春天来了，院子里的花都开了。孩子们在树下跑来跑去，老人坐在门口喝茶，谈着去年的收成和今年的雨水。",
    "japanese": "朝になると、駅前の商店街には焼きたてのパンの香りが広がり、学生たちは自転車で坂道を下っていく。",
    "korean": "아침이 되면 시장 골목에는 갓 구운 빵 냄새가 퍼지고 학생들은 자전거를 타고 언덕길을 내려간다.",
    "russian": "Утром на рынке пахнет свежим хлебом, а школьники едут на велосипедах вниз по длинной улице.",
    "german": "Übermorgen fährt der Zug schon früh über die Brücke; wir müssen also vor Sonnenaufgang aufstehen.",
    "polish": "Jutro rano pociąg odjeżdża wcześnie, więc musimy wstać przed świtem i zjeść śniadanie po drodze.",
    "emoji": "😀😅🎉🚀🔥🥳👩‍🔬🌍🍕🐙🧩🎻🏔️🛶🪁" * 3,
    "digits": "3141592653589793238462643383279502884197169399375105820974944592",
    "numbers": ", ".join(str(number * 7919 % 100_003) for number in range(60)),
    "capitals": "PLEASE DO NOT LEAN BICYCLES AGAINST THESE WINDOWS, THEY HAVE JUST BEEN CLEANED. THANK YOU VERY MUCH.",
    "markup": '<div class="row" id="r-17"><a href="/items/42?sort=asc&page=3">{"ok": true, "n": [1, 2, 3]}</a></div>',
}


def ask(*texts: str) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": text} for text in texts]}


@pytest.fixture(scope="module")
def count():
    """The tokens that the model really gets."""
    folder = student_weights(EMBEDDED_MODEL, load_settings().models_dir).folder  # made once, and kept
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    around = (
        5 + 21 + 3
    )  # of the template: start, role, line end, end, line end; a system prompt of its own; the answer's start
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids) + around


@pytest.mark.model
def test_estimate_is_rarely_under_the_truth(count):
    texts = [ENGLISH, CODE, *OTHERS.values()]
    pieces = [text[at : at + size] for text in texts for size in (12, 60, 400) for at in range(0, len(text), 17)]
    under = [piece for piece in pieces if estimate_prompt_tokens(ask(piece)) < count(piece)]
    assert len(under) <= len(pieces) / 100, under


@pytest.mark.model
def test_estimate_of_english_is_not_far_over_the_truth(count):
    for size in (40, 100, 200, len(ENGLISH)):
        for at in range(0, len(ENGLISH) - size + 1, 23):
            piece = ENGLISH[at : at + size]
            assert estimate_prompt_tokens(ask(piece)) <= 2.5 * count(piece), piece


def test_system_prompt_that_templates_add_counts_where_a_request_has_none():
    question = {"role": "user", "content": "Describe the sea in one sentence."}
    system = {"role": "system", "content": ""}
    assert estimate_prompt_tokens({"messages": [question]}) >= 37  # what SmolLM2's template makes of it
    assert estimate_prompt_tokens({"messages": [system, question]}) < estimate_prompt_tokens({"messages": [question]})


def test_tools_schema_and_tool_calls_count():
    plain = estimate_prompt_tokens(ask("What is the weather?"))
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "a", "function": {"name": "weather"}}]}
    with_tools = estimate_prompt_tokens({**ask("What is the weather?"), "tools": [tool]})
    assert with_tools > plain + 20
    schema = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}}
    assert estimate_prompt_tokens({**ask("What is the weather?"), "response_format": schema}) > plain + 10
    bare = {"role": "assistant", "content": None}
    assert estimate_prompt_tokens({"messages": [call]}) > estimate_prompt_tokens({"messages": [bare]}) + 10


def test_parts_count_as_text_and_pictures_as_pictures():
    text = {"type": "text", "text": ENGLISH}
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
    parts = estimate_prompt_tokens({"messages": [{"role": "user", "content": [text]}]})
    assert parts == estimate_prompt_tokens(ask(ENGLISH))
    assert estimate_prompt_tokens({"messages": [{"role": "user", "content": [text, picture]}]}) == (
        parts + ATTACHMENT_TOKENS
    )


@given(
    st.dictionaries(
        st.sampled_from(["messages", "tools", "response_format", "functions"]),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.integers() | st.text(st.characters(), max_size=20),
            lambda inner: (
                st.lists(inner, max_size=4)
                | st.dictionaries(st.sampled_from(["content", "text", "tool_calls", "name", "role"]), inner, max_size=4)
            ),
            max_leaves=12,
        ),
    )
)
def test_any_payload_has_a_size(payload):
    assert estimate_prompt_tokens(payload) >= 0


def test_lone_surrogate_has_a_size():
    assert estimate_prompt_tokens({"messages": [{"role": "user", "content": "\ud800", "name": "\udfff"}]}) > 0


def test_longer_text_is_never_smaller():
    sizes = [estimate_prompt_tokens(ask(ENGLISH[:size])) for size in range(0, len(ENGLISH), 5)]
    assert sizes == sorted(sizes)
