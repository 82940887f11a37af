"""Building the splits that nobody brought, before the request is checked; a resumed run keeps them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from expunge.data.builders import Auto, load_translator
from expunge.data.findings import Findings
from expunge.data.formats import load_splits
from expunge.data.records import Record
from expunge.data.request import fingerprint_records
from expunge.runs.folder import code_version, hash_of
from expunge.runs.kept import kept, kept_note
from expunge.runs.recipe import FromModel, Recipe

__all__ = ["Built", "build_missing", "missing", "wanted"]


@dataclass(frozen=True)
class Built:
    """Splits made of what the model says; `notes` say how, and `key` what from."""

    splits: Mapping[str, tuple[Record, ...]] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    key: str = ""

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(
            f"{split} is built from the model: {how}. {_MEANS[split]}" for split, how in self.notes.items()
        )


_MEANS = {
    "forget": "It holds what the model makes up as well, and not what it was not asked for",
    "retain": "The bar holds for what the model says by itself, not for what people ask: "
    "bring records that must stay",
}


def missing(recipe: Recipe, *, bar: bool) -> tuple[str, ...]:
    """The splits to be built: what the recipe says, and retain where a bar has nothing to hold on."""
    auto = recipe.retain is None and recipe.calibration is None and bar
    wanted = {"forget": isinstance(recipe.forget, FromModel), "retain": recipe.retain == "auto" or auto}
    return tuple(split for split, is_wanted in wanted.items() if is_wanted and not recipe.benchmark)


def wanted(recipe: Recipe) -> Auto:
    """What is built of the other splits, without the model, and with what."""
    splits = tuple(split for split in recipe.auto if split != "retain")
    build = recipe.build
    translator = load_translator(build.translator) if build.translator and "forget_hard" in splits else None
    if "neighbors" not in splits or build.neighbors == "template":
        return Auto(splits, build.neighbors, translator=translator)
    from expunge.measure.encoders import make_encoder

    encoder = make_encoder(build.encoder)  # on the CPU: the same neighbors everywhere
    return Auto(splits, build.neighbors, encoder.encode, encoder.name, translator)


def build_missing(
    recipe: Recipe, original: str, past: Mapping[str, Sequence[Record]], output: Path, *, bar: bool
) -> Built:
    """What is missing, from the model; what a run in `output` has built of the same is taken as it is.

    Raises DataError with what is wrong with the files that are there, before the model is loaded for nothing.
    """
    absent = missing(recipe, bar=bar)
    if not absent:
        return Built()
    from expunge.runs.from_model import build_forget, build_retain
    from expunge.runs.models import Shelf

    findings = Findings()
    splits = {**load_splits(recipe.sources, columns=recipe.columns, findings=findings), **past}
    findings.raise_problems()
    subject = Shelf(recipe, {"original": original}).load("original")
    marks = [subject.fingerprint(), subject.encoder.fingerprint(), code_version("data", "subjects", "runs")]
    records = {split: fingerprint_records(found) for split, found in splits.items()}
    key = hash_of([absent, marks, records, recipe.seed, recipe.model_dump(mode="json", include={"forget"})])
    note = kept_note(output)
    known = {split: found for split in absent if (found := kept(output, split)) is not None}
    if note.get("key") == key and known.keys() == set(absent):
        return Built(known, note["built"], key)
    made: dict[str, tuple[Record, ...]] = {}
    notes: dict[str, str] = {}
    if isinstance(recipe.forget, FromModel):
        made["forget"], notes["forget"] = build_forget(subject, recipe.forget)
    if "retain" in absent:
        made["retain"], notes["retain"] = build_retain(subject, {**splits, **made}, recipe.seed)
    return Built(made, notes, key)
