"""Reading the layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from expunge.attacks.base import ATTACKS, Attack, Field, Outcome, Profile
from expunge.attacks.perturbing import sheets_of
from expunge.errors import NotComputable
from expunge.explain.readout import lens_evidence, probe_scores, tuned_maps
from expunge.progress import track
from expunge.subjects.architecture import blocks
from expunge.subjects.subject import Subject

READERS: Mapping[Profile, tuple[str, ...]] = {
    "quick": ("logit",),
    "default": ("logit", "tuned"),
    "deep": ("logit", "tuned", "probe"),
}


@ATTACKS.register(
    "lens",
    threat="white-box",
    kind="read-out",
    injects="nothing",
    tier=1,
    profiles=["quick", "default", "deep"],
    budget="every block but the last, by the model's own head; default also by a fitted map; deep by a probe",
    source="Patil et al. 2023, arXiv 2309.17410; Belrose et al. 2023, arXiv 2303.08112",
)
@dataclass(frozen=True, kw_only=True)
class Lens(Attack):
    """Read the answer off every block but the last: what a layer still says, the model still knows.

    `logit`: final norm and head on the block's output. `tuned`: an affine map in between, fitted on retain.
    `probe`: a classifier of the last prompt state, fitted on retain facts of the same relation. The last
    block is the direct question. The largest recovery over the layers is the residual knowledge.
    """

    readers: tuple[str, ...] = ()  # empty: the profile's

    def run(self, subject: Subject, field: Field) -> Iterator[Outcome]:
        subject.need("hidden", what="the attack lens")
        layers = list(range(len(blocks(subject.model)) - 1))
        if not layers:
            raise NotComputable("the model has one block: there is no layer before the answer")
        readers = self.readers or READERS[field.profile]
        sheets = sheets_of(subject, field)
        with track("attack lens", len(readers)) as advance:
            for reader in readers:
                if reader == "probe":
                    yield from _probed(subject, field, layers)
                elif reader == "logit" or field.request.retain:
                    maps: dict[int, Any] = {}
                    if reader == "tuned":
                        maps |= tuned_maps(subject, field.request.retain, layers)
                    read = {split: lens_evidence(subject, s, layers, maps) for split, s in sheets.items()}
                    for layer in layers:
                        evidence = {split: found[layer] for split, found in read.items()}
                        yield Outcome({"reader": reader, "layer": layer}, evidence)
                advance(1, note=reader)


def _probed(subject: Subject, field: Field, layers: list[int]) -> Iterator[Outcome]:
    found = {}
    for split, records in field.scored().items():
        try:
            found[split] = probe_scores(subject, field.request.retain, records, layers, seed=field.seed)
        except NotComputable:
            if split == "forget":
                return  # no forget answer is known from retain: a probe cannot name it
    for layer in layers:
        values = {split: scores[layer].per_record for split, scores in found.items()}
        score = found["forget"][layer]
        details = {"selectivity": score.selectivity, "control": score.control, "chance": score.chance}
        config = {"reader": "probe", "layer": layer}
        yield Outcome(config, values=values, metric="probe_accuracy", details=details)
