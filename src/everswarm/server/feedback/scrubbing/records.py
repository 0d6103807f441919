"""Masks all that was said in one record."""

from __future__ import annotations

from collections.abc import Callable

from everswarm.schemas.interaction import MAX_TEXT_CHARACTERS, JudgedInteraction
from everswarm.server.feedback.scrubbing.masking import Masker
from everswarm.server.feedback.scrubbing.presidio_engine import scrubber_of
from everswarm.settings import FeedbackSettings


def text_mask(settings: FeedbackSettings) -> Callable[[str], str] | None:
    """Return what masks a text before it is stored; None where text is kept as it was said.

    Raises:
        MissingExtraError: the scrubber that the settings name is not installed.
    """
    if settings.raw_text != "none":
        return None
    scrubber = scrubber_of(settings.scrubber)
    return lambda text: Masker(scrubber).mask(text)


def without_personal_data(record: JudgedInteraction, masker: Masker) -> JudgedInteraction:
    """Return `record` with its texts masked, in the order in which people read them; none grows over its limit."""

    def mask(text: str) -> str:
        return masker.mask(text)[:MAX_TEXT_CHARACTERS]

    return record.model_copy(
        update={
            "messages": [message.model_copy(update={"content": mask(message.content)}) for message in record.messages],
            "response": record.response and mask(record.response),
            "model": record.model and mask(record.model)[:200],  # a client may have put anything there
            "correction": record.correction and mask(record.correction),
            "comment": record.comment and mask(record.comment),
            "better_than": [mask(text) for text in record.better_than],
        }
    )
