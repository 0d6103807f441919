"""Sections about what people said: how it is kept, and how it becomes a dataset."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import ConfigDict, Field, model_validator

from everswarm.settings.section import Section

ScrubberName = Literal["patterns", "presidio"]


class FeedbackSettings(Section):
    """How interactions and judgements are kept."""

    raw_text: Literal["encrypted", "none"] = "encrypted"  # none: personal data is masked before anything is stored
    scrubber: ScrubberName = "patterns"  # presidio, an extra, adds its own recognisers and is slower
    keep_days: int = Field(default=0, ge=0, le=36_500)  # older interactions are erased; 0: none are
    records_per_hour: int = Field(default=20_000, ge=1)  # that one device may upload
    reviewers: int = Field(default=2, ge=1, le=20)  # who must agree before a review counts


class CurationRules(Section):
    """What a dataset may hold. Part of a cycle's parameters, so that a dataset tells by which rules it was made."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    languages: list[str] = Field(default_factory=list)  # two-letter codes; empty: all
    max_characters: int = Field(default=8_000, ge=1)  # of a conversation, and of a target
    quality: bool = True  # drop refusals, repetition, truncation, gibberish
    minimum_judge_score: float | None = Field(default=None, ge=0, le=1)  # where records carry a judge's score
    near_duplicate: float = Field(default=0.8, gt=0, le=1)  # from this similarity on two questions are one
    poisoning_defence: bool = True  # suspicious records go to the review queue instead
    max_user_share: float = Field(default=0.05, gt=0, le=1)  # of training; or two even shares, where few train
    max_task_share: float = Field(default=1.0, gt=0, le=1)  # of the dataset, of any one task
    max_language_share: float = Field(default=1.0, gt=0, le=1)
    max_source_share: float = Field(default=1.0, gt=0, le=1)  # corrections, liked answers
    fresh_days: int = Field(default=0, ge=0)  # older records count as replay; 0: none does
    max_replay_share: float = Field(default=1.0, gt=0, le=1)


class CurationSettings(Section):
    """How datasets are made on this machine."""

    engine: Literal["polars", "ray"] = "polars"  # ray: beyond one machine, needs the extra `scale`
    processes: int = Field(default=0, ge=0, le=256)  # side by side; 0: a core each, up to 4
    rules: CurationRules = CurationRules()

    @model_validator(mode="after")
    def _check_languages(self) -> Self:
        for code in self.rules.languages:
            if len(code) != 2 or not code.isalpha() or not code.islower():
                raise ValueError(f"rules.languages: '{code}' should be a two-letter code such as en")
        return self
