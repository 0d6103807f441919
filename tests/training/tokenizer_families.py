"""One small tokenizer of each family, made of a few lines of text by the same tools as the real ones."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache

from benchmarks.distill.aligner import sentencepiece_bpe
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast
from transformers.utils.logging import set_verbosity_error

set_verbosity_error()

CORPUS = [
    "The quick brown fox, 1234567 years old, didn't jump over the lazy dog.\r\n\tIt slept; so did the others!",
    "def area(width: float, height: float) -> float:\n    return width * height  # 12.5 * 3\n\n\n",
    "Ein Käse für übermorgen kostet 3,50 €. L'été dernier, où étiez-vous ? ¿Cuántos años tienes, señor?",
    "Сколько будет дважды два? Πόσο κάνει; 二加二等于四。 今日は暑いですね。 오늘은 덥네요. كم عمرك؟",
    "The answer is 42. The answer is yes. The answer is no. What is the answer? 😀 👩‍👩‍👧 🇩🇪",
] * 4
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


@cache
def byte_level() -> PreTrainedTokenizerFast:
    """GPT-2's kind, with its regular expression and SmolLM2's digits one by one."""
    from tokenizers import pre_tokenizers

    return _byte_level(pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False))


@cache
def llama_3_like() -> PreTrainedTokenizerFast:
    """Digits in threes."""
    return _byte_level(*_split_by(LLAMA_3))


@cache
def qwen_like() -> PreTrainedTokenizerFast:
    """Digits one by one; reads characters composed (NFC)."""
    from tokenizers import normalizers

    tokenizer = _byte_level(*_split_by(LLAMA_3.replace("{1,3}", "")))
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    return tokenizer


@cache
def without_some_bytes() -> PreTrainedTokenizerFast:
    """Like SmolLM2, which has no token for a few control characters and for the first byte of rare letters."""
    from tokenizers import pre_tokenizers

    return _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), without=b"\x04\x06\x13\x16\xf1\xf2")


@cache
def llama_2_like() -> PreTrainedTokenizerFast:
    """SentencePiece BPE with a space put in front, as Mistral and Phi-3."""
    from transformers import LlamaTokenizerFast

    return sentencepiece_bpe(_sentencepiece("bpe"), LlamaTokenizerFast)


@cache
def gemma_like() -> PreTrainedTokenizerFast:
    """SentencePiece BPE with nothing put in front."""
    from transformers import GemmaTokenizerFast

    return sentencepiece_bpe(_sentencepiece("bpe"), GemmaTokenizerFast)


@cache
def unigram(prepend_scheme: str = "always") -> PreTrainedTokenizerFast:
    """SentencePiece Unigram; a space is put in front "always", of the "first" piece only, or "never"."""
    import sentencepiece
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    processor = sentencepiece.SentencePieceProcessor(model_proto=_sentencepiece("unigram"))
    scores = [(processor.id_to_piece(n), processor.get_score(n)) for n in range(processor.get_piece_size())]
    inner = Tokenizer(models.Unigram(scores, unk_id=processor.unk_id(), byte_fallback=True))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme)
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


FAMILIES: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte level": byte_level,
    "llama 3": llama_3_like,
    "qwen": qwen_like,
    "without some bytes": without_some_bytes,
    "llama 2": llama_2_like,
    "gemma": gemma_like,
    "unigram": unigram,
    "unigram, space before the first": lambda: unigram("first"),
    "unigram, no space": lambda: unigram("never"),
}


_fragments = st.sampled_from(
    [
        *("<|im_end|>", "<|endoftext|>", "</s>", "<s>", "<unk>", "<bos>", "[INST]", "<0x41>", "▁", "▁▁a", "Ġ", "Ċ"),
        *("the", " the", "The answer", " 42", "1234567", "3.14159", "٣٤", "½", "Ⅷ"),
        *("  ", "    ", "\t", "\n", "\r\n\r\n", "\u00a0", "\u3000", "\u2028", "\u200b", "\ufeff"),
        *("def f(x):\n\treturn x**2\n", "{'a': [1, 2]}", "<b>&amp;</b>", "\x00", "\x16", "\x7f"),
        *("é", "e\u0301", "Ω\u2126", "q\u0323\u0307", "\u0344", "\u09c7\u09be", "각", "\u1100\u1161", "가\u11a8", "ﬁ"),
        *("中文", "今日は", "كم عمرك", "नमस्ते", "שלום", "\u202eabc", "\U000409df", "\U0010ffff", "\ufffd"),
        *("👩\u200d👩\u200d👧", "🏳\ufe0f\u200d🌈", "🇩🇪", "👍🏽", "\u200d"),
    ]
)
any_text = st.text(max_size=40) | st.lists(_fragments | st.text(max_size=4), max_size=12).map("".join)


def _split_by(pattern: str) -> list[object]:
    from tokenizers import Regex, pre_tokenizers

    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]


def _byte_level(*cuts: object, without: bytes = b"") -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(list(cuts))
    inner.decoder = decoders.ByteLevel()
    # control characters stand in GPT-2's alphabet 256 places higher
    absent = {chr(256 + byte) if byte < 33 else chr(byte) for byte in without}
    alphabet = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - absent)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<|im_start|>", eos_token="<|im_end|>")


@cache
def _sentencepiece(kind: str) -> bytes:
    """Train a model that keeps every byte."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        model_type=kind,
        vocab_size=600,
        hard_vocab_limit=False,
        byte_fallback=True,
        split_digits=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=["<bos>", "<eos>", "<pad>", "<mask>"],
        minloglevel=2,
    )
    return model.getvalue()
