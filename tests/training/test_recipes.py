from __future__ import annotations

import pytest

from everswarm.errors import BadRequestError
from everswarm.training.recipes import load_recipe, recipe_names


def test_every_recipe_can_be_read() -> None:
    assert recipe_names() == ["all-linear", "on-policy", "seed"]
    for name in recipe_names():
        assert load_recipe(name).name == name


def test_seed_recipe_is_the_one_that_the_numbers_were_promised_for() -> None:
    seed = load_recipe("seed")
    assert (seed.rank, seed.alpha, seed.target_modules, seed.dropout) == (16, 32, ["q_proj", "v_proj"], 0.05)
    assert (seed.batch_size, seed.epochs, seed.learning_rate, seed.soft_target_weight) == (4, 1, 1e-3, 0.7)
    assert load_recipe("all-linear").target_modules == "all-linear"


@pytest.mark.parametrize("name", ["sed", "", "../seed", "seed.yaml"])
def test_unknown_recipe_is_told_with_the_known_ones(name: str) -> None:
    with pytest.raises(BadRequestError, match=r"There is no recipe '.*'. Choose one of: all-linear, on-policy, seed\."):
        load_recipe(name)
