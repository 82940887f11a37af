"""What a run folder says of itself, read without anything heavy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["read_json", "read_recipe", "read_state"]


def read_state(folder: Path) -> dict[str, Any] | None:
    """What a run folder says is done: None where it is no run, {} where its note is damaged."""
    state = read_json(folder / "run.json")
    if state is None:
        return None
    return state if isinstance(state, dict) and "stages" in state else {}


def read_recipe(folder: Path) -> dict[str, Any]:
    """The recipe a run folder holds, as it was validated; empty where there is none that can be read."""
    recipe = read_json(folder / "recipe.json")
    return recipe if isinstance(recipe, dict) else {}


def read_json(path: Path) -> Any:
    """The value; None where there is no file, an empty text where it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        return None
    except ValueError:
        return ""
