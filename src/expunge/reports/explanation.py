"""An explanation as one self-contained page: ids and numbers, no text of any record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from expunge.reports.explanation_charts import heat_map, layer_profile, signed_map
from expunge.reports.page import environment

__all__ = ["explanation_page"]

READ_OUTS = {
    "logit_lens": "Logit lens: final norm and head on each block's output",
    "tuned_lens": "Tuned lens: an affine map to the last block first, fitted on retain records",
    "probe": "Linear probe: accuracy less that of a probe taught permuted labels",
}
SHOWN = 20
"""Rows of the table of retained records."""


def explanation_page(found: Mapping[str, Any]) -> str:
    """The page of what `expunge explain` wrote into explain.json."""
    return (
        environment()
        .get_template("explain.html.j2")
        .render(
            found=found,
            profiles=_profiles(found["residual"]),
            maps={name: _map(name, one) for name, one in found["localizers"].items()},
            conflict=_conflict(found["conflict"]),
            retained=found["retained"].get("rows", [])[:SHOWN],
            num_retained=len(found["retained"].get("rows", [])),
        )
    )


def _profiles(residual: Mapping[str, Any]) -> list[tuple[str, str, Markup]]:
    """(name, what it is, plot) of each read-out there is."""
    made = []
    for name, values in residual.get("values", {}).items():
        unit = "selectivity" if name == "probe" else residual["metric"]
        title = f"{READ_OUTS[name].partition(':')[0]} of the forget set by layer and model"
        made.append((name, READ_OUTS[name], Markup(layer_profile(values, unit, title))))
    return made


def _map(name: str, one: Mapping[str, Any]) -> Markup | None:
    if "map" not in one:
        return None
    return Markup(heat_map(one["records"], one["layers"], one["map"], f"Records by layer: {name}"))


def _conflict(found: Mapping[str, Any]) -> Markup | None:
    if "points" not in found:
        return None
    return Markup(signed_map(found["points"], "Cosine of forget and retain gradients by layer, along α"))
