"""llama.h through ctypes, on the llama.cpp library inside the `xllamacpp` wheel: no wheel offers scoring as a call.

Parameter structs are opaque: 512 bytes of which only the first four numbers are written, after checking that they
hold llama.cpp's defaults. Fields move between versions behind those four, and we touch none of them. The batch is
ours, with zeroed room behind it for fields that a later version may add.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from everswarm.errors import EverswarmError

CHUNK_TOKENS = 64  # a batch; scores move slightly with it, so it is fixed
_DEFAULT_SIZES = (512, 2048, 512, 1)  # n_ctx, n_batch, n_ubatch, n_seq_max in llama_context_default_params
_LOG_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)

_log: deque[str] = deque(maxlen=6)  # llama.cpp has one log a process, and keeps only a pointer to its callback


def _keep_log(_level: int, text: bytes | None, _data: object) -> None:
    line = (text or b"").decode(errors="replace").strip()
    if line:
        _log.append(line)


_LOG_KEEPER = _LOG_CALLBACK(_keep_log)


class LlamaScorerUnavailableError(EverswarmError):
    """This machine has no llama.cpp library that can be called; quantised weights must be scored another way."""

    title = "llama.cpp cannot be called here"


class LlamaError(EverswarmError):
    """llama.cpp refused a file or a batch; the text ends with what it logged."""

    title = "llama.cpp refused"


class _ModelParameters(ctypes.Structure):
    _fields_ = (("opaque", ctypes.c_uint8 * 512),)


class _ContextParameters(ctypes.Structure):
    _fields_ = (("sizes", ctypes.c_uint32 * 4), ("opaque", ctypes.c_uint8 * 496))


class _Batch(ctypes.Structure):
    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.POINTER(ctypes.c_float)),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
        ("room", ctypes.c_uint8 * 200),
    )


_POINTER = ctypes.c_void_p
_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "llama_log_set": (None, (_LOG_CALLBACK, _POINTER)),
    "llama_backend_init": (None, ()),
    "llama_model_default_params": (_ModelParameters, ()),
    "llama_context_default_params": (_ContextParameters, ()),
    "llama_model_load_from_file": (_POINTER, (ctypes.c_char_p, _ModelParameters)),
    "llama_model_free": (None, (_POINTER,)),
    "llama_init_from_model": (_POINTER, (_POINTER, _ContextParameters)),
    "llama_free": (None, (_POINTER,)),
    "llama_set_n_threads": (None, (_POINTER, ctypes.c_int32, ctypes.c_int32)),
    "llama_adapter_lora_init": (_POINTER, (_POINTER, ctypes.c_char_p)),
    "llama_set_adapters_lora": (
        ctypes.c_int32,
        (_POINTER, ctypes.POINTER(_POINTER), ctypes.c_size_t, ctypes.POINTER(ctypes.c_float)),
    ),
    "llama_model_get_vocab": (_POINTER, (_POINTER,)),
    "llama_vocab_n_tokens": (ctypes.c_int32, (_POINTER,)),
    "llama_vocab_is_eog": (ctypes.c_bool, (_POINTER, ctypes.c_int32)),
    "llama_vocab_bos": (ctypes.c_int32, (_POINTER,)),
    "llama_vocab_eos": (ctypes.c_int32, (_POINTER,)),
    "llama_vocab_eot": (ctypes.c_int32, (_POINTER,)),
    "llama_vocab_get_add_bos": (ctypes.c_bool, (_POINTER,)),
    "llama_model_n_ctx_train": (ctypes.c_int32, (_POINTER,)),
    "llama_model_chat_template": (ctypes.c_char_p, (_POINTER, ctypes.c_char_p)),
    "llama_token_to_piece": (
        ctypes.c_int32,
        (_POINTER, ctypes.c_int32, ctypes.c_char_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_bool),
    ),
    "llama_tokenize": (
        ctypes.c_int32,
        (
            _POINTER,
            ctypes.c_char_p,
            ctypes.c_int32,
            ctypes.POINTER(ctypes.c_int32),
            ctypes.c_int32,
            ctypes.c_bool,
            ctypes.c_bool,
        ),
    ),
    "llama_get_memory": (_POINTER, (_POINTER,)),
    "llama_memory_clear": (None, (_POINTER, ctypes.c_bool)),
    "llama_memory_seq_rm": (ctypes.c_bool, (_POINTER, ctypes.c_int32, ctypes.c_int32, ctypes.c_int32)),
    "llama_decode": (ctypes.c_int32, (_POINTER, _Batch)),
    "llama_get_logits_ith": (ctypes.POINTER(ctypes.c_float), (_POINTER, ctypes.c_int32)),
}


def library_path() -> Path:
    """Return the file inside the `xllamacpp` wheel that holds llama.cpp; nothing is loaded.

    Raises:
        LlamaScorerUnavailableError: the wheel is not installed.
    """
    found = importlib.util.find_spec("xllamacpp")
    for folder in (found.submodule_search_locations or []) if found else []:
        for path in sorted(Path(folder).iterdir()):
            if path.name.startswith("xllamacpp") and path.suffix in {".so", ".pyd", ".dylib", ".dll"}:
                return path
    raise LlamaScorerUnavailableError(
        "Scoring in llama.cpp needs the library of the 'engine' extra, which is not installed. "
        "Install it with: pip install 'everswarm[engine]'"
    )


def load_library(path: Path | None = None) -> ctypes.CDLL:
    """Load llama.cpp and declare the functions that we call.

    Raises:
        LlamaScorerUnavailableError: not installed, does not export the functions (Windows wheels export none), or
            its default parameters are not where we write.
    """
    path = path or library_path()
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise LlamaScorerUnavailableError(f"{path.name} cannot be loaded: {error}") from error
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name, None)
        if function is None:
            raise LlamaScorerUnavailableError(f"{path.name} exports no {name} on this platform.")
        function.restype, function.argtypes = result, arguments
    sizes = tuple(library.llama_context_default_params().sizes)
    if sizes != _DEFAULT_SIZES:
        raise LlamaScorerUnavailableError(
            f"{path.name} has context defaults {sizes}, expected {_DEFAULT_SIZES}: its layout is not the known one."
        )
    return library


def engine_name() -> str:
    """Return the engine as scores name it, such as `llama.cpp in xllamacpp 2026.10.11549, 64-token chunks`."""
    return f"llama.cpp in xllamacpp {importlib.metadata.version('xllamacpp')}, {CHUNK_TOKENS}-token chunks"


class PlacedToken(NamedTuple):
    """A token in a batch: where it stands, in which sequence, and whether the logits after it are wanted."""

    id: int
    position: int
    sequence: int
    wanted: bool


class LlamaModel:
    """One GGUF model with a context, and adapters that can be put on and taken off. Knows nothing of texts."""

    def __init__(self, base_gguf: Path, *, context_tokens: int, threads: int, sequences: int = 1) -> None:
        """Load `base_gguf` with room for `sequences` texts side by side, each of `context_tokens`.

        Raises:
            LlamaScorerUnavailableError: see `load_library`.
            LlamaError: the file is not a model, or memory is short.
        """
        self._library = load_library()
        self._library.llama_log_set(_LOG_KEEPER, None)
        self._library.llama_backend_init()
        self._model = self._library.llama_model_load_from_file(
            str(base_gguf).encode(), self._library.llama_model_default_params()
        )
        self._require(self._model, f"{base_gguf.name} cannot be loaded as a model")
        parameters = self._library.llama_context_default_params()
        parameters.sizes[:] = (context_tokens * sequences, CHUNK_TOKENS, CHUNK_TOKENS, sequences)
        self._context = self._library.llama_init_from_model(self._model, parameters)
        self._require(self._context, f"no context of {context_tokens} tokens could be made for {base_gguf.name}")
        self._library.llama_set_n_threads(self._context, threads, threads)
        self._vocabulary = self._library.llama_model_get_vocab(self._model)
        self._memory = self._library.llama_get_memory(self._context)
        self.vocabulary_size: int = self._library.llama_vocab_n_tokens(self._vocabulary)
        self.trained_context_tokens: int = self._library.llama_model_n_ctx_train(self._model)
        self.begins_text: bool = self._library.llama_vocab_get_add_bos(self._vocabulary)  # with `begin_of_text`
        self.begin_of_text: int = self._library.llama_vocab_bos(self._vocabulary)  # -1: there is none
        self.end_of_text: int = self._library.llama_vocab_eos(self._vocabulary)
        end_of_turn = self._library.llama_vocab_eot(self._vocabulary)
        self.end_of_turn: int = end_of_turn if end_of_turn >= 0 else self.end_of_text

    def load_adapter(self, path: Path) -> int:
        """Load a LoRA GGUF and return its handle, for `use_adapter`.

        Raises:
            LlamaError: it is not an adapter, or belongs to another base model.
        """
        handle = self._library.llama_adapter_lora_init(self._model, str(path).encode())
        self._require(handle, f"{path.name} cannot be loaded as an adapter of this base model")
        return int(handle)

    def use_adapter(self, handle: int | None) -> None:
        """Answer with this adapter at full strength from now on, or with the base alone; forgets all tokens.

        Raises:
            LlamaError: llama.cpp does not take it.
        """
        count = 0 if handle is None else 1
        handles, scales = (_POINTER * 1)(handle), (ctypes.c_float * 1)(1.0)
        code = self._library.llama_set_adapters_lora(self._context, handles, count, scales)
        self._require(code == 0, f"the adapter was not taken (code {code})")
        self._library.llama_memory_clear(self._memory, True)

    def forget_from(self, position: int, *, sequence: int = 0) -> None:
        """Drop the tokens at `position` and after it in one sequence."""
        self._library.llama_memory_seq_rm(self._memory, sequence, position, -1)

    def read(self, tokens: Sequence[PlacedToken]) -> list[NDArray[np.float32]]:
        """Read at most `CHUNK_TOKENS` tokens; return the logits (vocabulary,) of those that want them, in order.

        The arrays are llama.cpp's own memory: use them before the next call.

        Raises:
            LlamaError: the context is full, or decoding failed.
        """
        count = len(tokens)
        sequences = [ctypes.c_int32(token.sequence) for token in tokens]
        batch = _Batch(
            n_tokens=count,
            token=(ctypes.c_int32 * count)(*(token.id for token in tokens)),
            pos=(ctypes.c_int32 * count)(*(token.position for token in tokens)),
            n_seq_id=(ctypes.c_int32 * count)(*[1] * count),
            seq_id=(ctypes.POINTER(ctypes.c_int32) * count)(*map(ctypes.pointer, sequences)),
            logits=(ctypes.c_int8 * count)(*(token.wanted for token in tokens)),
        )
        code = self._library.llama_decode(self._context, batch)
        self._require(code == 0, f"{count} tokens at position {tokens[0].position} could not be read (code {code})")
        return [
            np.ctypeslib.as_array(self._library.llama_get_logits_ith(self._context, index), (self.vocabulary_size,))
            for index, token in enumerate(tokens)
            if token.wanted
        ]

    def ends_answer(self, token: int) -> bool:
        """Return whether `token` ends a turn or a text."""
        return bool(self._library.llama_vocab_is_eog(self._vocabulary, token))

    @property
    def chat_template(self) -> str | None:
        """Return the chat template (Jinja) that came with the model, or None."""
        template: bytes | None = self._library.llama_model_chat_template(self._model, None)
        return None if template is None else template.decode()

    def pieces(self) -> list[bytes]:
        """Return the bytes of every token; special tokens as they are written."""
        return [self._piece(token) for token in range(self.vocabulary_size)]

    def spelling(self, token: int) -> str:
        """Return how a special token is written; empty for -1, which is none."""
        return "" if token < 0 else self._piece(token).decode()

    def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        """Return the ids of `text`, nothing added; with `special`, special tokens that it names are read as such."""
        data = text.encode()
        room = len(data) + 8
        ids = (ctypes.c_int32 * room)()
        count = self._library.llama_tokenize(self._vocabulary, data, len(data), ids, room, False, special)
        return list(ids[:count])

    def close(self) -> None:
        """Give the memory back."""
        self._library.llama_free(self._context)
        self._library.llama_model_free(self._model)  # frees its adapters too

    def _piece(self, token: int) -> bytes:
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            size = self._library.llama_token_to_piece(self._vocabulary, token, buffer, room, 0, True)
            if size >= 0:
                return buffer.raw[:size]
            room = -size

    def _require(self, value: object, what: str) -> None:
        if not value:
            raise LlamaError(f"{what}. llama.cpp said: {' / '.join(_log) or 'nothing'}")
