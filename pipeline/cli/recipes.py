"""Historical lineages as pipelines on the demo's task: python -m pipeline recipe NAME."""

from __future__ import annotations

from pathlib import Path

from pipeline.config.load import ConfigError, nearest

PLACE = Path("configs") / "demo"
ROOT = Path(__file__).parents[2]
RECIPES = {
    "davinci-002": "SFT, then FeedME",
    "davinci-003": "SFT, FeedME, a reward model, PPO",
}


def recipe_path(name: str) -> str:
    """The path of a recipe's YAML, relative to the working directory if possible.

    Raises ConfigError if there is no recipe of that name.
    """
    if name not in RECIPES:
        raise ConfigError([f"recipe: no recipe {name!r}{nearest(name, RECIPES)}"])
    path = PLACE / f"{name}.yaml"
    found = path if path.is_file() else ROOT / path
    if not found.is_file():
        raise ConfigError([f"recipe: {path} is not here; run this in a checkout of the repository"])
    return str(found)
