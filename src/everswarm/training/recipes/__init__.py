"""The numbers of a training run, one YAML file each. Takes a name, gives a `Recipe`. Knows nothing of training."""

from __future__ import annotations

from importlib import resources

from everswarm.errors import BadRequestError
from everswarm.schemas.adapter import Recipe


def recipe_names() -> list[str]:
    """Return the names of the recipes, sorted."""
    files = (entry.name for entry in resources.files(__name__).iterdir())
    return sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))


def load_recipe(name: str) -> Recipe:
    """Return the recipe called `name`.

    Raises:
        BadRequestError: there is none; lists those that there are.
    """
    import yaml

    if name not in recipe_names():
        raise BadRequestError(f"There is no recipe '{name}'. Choose one of: {', '.join(recipe_names())}.")
    text = (resources.files(__name__) / f"{name}.yaml").read_text(encoding="utf-8")
    return Recipe.model_validate({"name": name, **yaml.safe_load(text)})
