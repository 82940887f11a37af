"""Setting weights to zero."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from expunge.attacks.base import ATTACKS, Field, Profile
from expunge.attacks.perturbing import Changed, Perturbation, plain_copy
from expunge.errors import ConfigError, Problem, nearest
from expunge.interventions.pruning import magnitude_prune_, set_difference_, wanda_prune_
from expunge.subjects.subject import Subject
from expunge.training.gradients import answer_rows

Configs = tuple[Mapping[str, Any], ...]

SPARSITIES = (0.1, 0.3, 0.5)
MAGNITUDE: Configs = tuple({"by": "magnitude", "sparsity": s} for s in SPARSITIES)
WANDA: Configs = tuple({"by": "wanda", "sparsity": s} for s in SPARSITIES)
DIFFERENCE: Configs = tuple(
    {"by": "set_difference", "q": q, "p": p} for q, p in ((0.05, 0.05), (0.1, 0.05), (0.1, 0.1))
)
GRIDS: Mapping[Profile, Configs] = {
    "quick": MAGNITUDE[1:2],
    "default": (*MAGNITUDE, WANDA[1], DIFFERENCE[0]),
    "deep": (*MAGNITUDE, *WANDA, *DIFFERENCE),
}


@ATTACKS.register(
    "prune",
    threat="white-box",
    kind="weights",
    injects="nothing",
    tier=1,
    profiles=["default", "deep"],
    budget="5 prunings (deep: 9): by magnitude, by activation, and what matters to forget and not to retain",
    source="Łucki et al. 2024, arXiv 2409.18025; Wei et al. 2024, arXiv 2402.05162",
)
@dataclass(frozen=True, kw_only=True)
class Prune(Perturbation):
    """Set weights to zero: by magnitude, by |W_ij|·‖x_j‖₂, or those that matter to forget and not to retain.

    What was put over the knowledge may go first. Activations come from retain records; the set difference
    looks at the forget records too, and writes nothing of them into the weights.
    """

    grid: Configs = ()  # empty: the profile's

    def configs(self, field: Field) -> Sequence[Mapping[str, Any]]:
        grid = self.grid or GRIDS[field.profile]
        for kind in [str(config.get("by")) for config in grid if config.get("by") not in PRUNERS]:
            raise ConfigError(Problem("attack 'prune'", f"by is {kind!r}", nearest(kind, PRUNERS)))
        return [c for c in grid if c["by"] == "magnitude" or field.request.retain]  # activations are retain's

    def changed(self, subject: Subject, field: Field) -> Iterator[Changed]:
        for config in self.configs(field):
            work = plain_copy(subject)
            settings = {key: value for key, value in config.items() if key != "by"}
            pruned = PRUNERS[config["by"]](work, field, settings)
            yield Changed(config, work, {"pruned_weights": pruned})


def _magnitude(work: Subject, field: Field, settings: Mapping[str, Any]) -> int:
    return magnitude_prune_(work.model, **settings)


def _wanda(work: Subject, field: Field, settings: Mapping[str, Any]) -> int:
    return wanda_prune_(work, answer_rows(work, field.request.retain), **settings)


def _set_difference(work: Subject, field: Field, settings: Mapping[str, Any]) -> int:
    rows = [answer_rows(work, records) for records in (field.request.forget, field.request.retain)]
    return set_difference_(work, *rows, **settings)


PRUNERS: Mapping[str, Callable[[Subject, Field, Mapping[str, Any]], int]] = {
    "magnitude": _magnitude,
    "wanda": _wanda,
    "set_difference": _set_difference,
}
