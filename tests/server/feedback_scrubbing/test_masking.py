"""Placeholders: the same value has the same number within one record."""

from __future__ import annotations

from everswarm.server.feedback.scrubbing import Masker, scrubber_of


def masker() -> Masker:
    return Masker(scrubber_of("patterns"))


def test_same_value_gets_the_same_number_across_the_texts_of_a_record() -> None:
    record = masker()
    assert record.mask("a@b.example and c@d.example") == "[EMAIL_1] and [EMAIL_2]"
    assert record.mask("C@D.example again") == "[EMAIL_2] again"
    assert record.mask("Tel. 030 23125 478 or 030/23125478") == "Tel. [PHONE_1] or [PHONE_1]"
    assert record.counts == {"email": 3, "phone": 2}


def test_two_spellings_of_one_iban_are_one_value() -> None:
    assert masker().mask("DE89370400440532013000 = DE89 3704 0044 0532 0130 00") == "[IBAN_1] = [IBAN_1]"


def test_new_value_does_not_take_the_number_of_a_placeholder_in_the_text() -> None:
    assert masker().mask("[EMAIL_3] wrote to a@b.example") == "[EMAIL_3] wrote to [EMAIL_4]"


def test_placeholder_is_never_matched() -> None:
    record = masker()
    text = "password=[KEY_1] Tel. [PHONE_2], [ADDRESS_1]@[EMAIL_1] [TOKEN_1] [CARD_1] [IBAN_1] [IP_1]"
    assert record.mask(text) == text
    assert record.counts == {}


def test_text_without_values_comes_back_as_it_is() -> None:
    text = "24 x 1/6 = 4 liters, so 24 - 8 = 16."
    assert masker().mask(text) is text
