"""Files for the example recipes item, feature, class, task and stream, and the tiny model they are about.

`python recipes/examples.py` makes them in runs/examples, in about half a minute: a world of fourteen invented
people, a Llama of 0.2 M parameters that knows them, and one that never saw the first four.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from expunge.benchmarks.personas import Personas
from expunge.benchmarks.personas_world import KNOWN, World, make_world
from expunge.data.records import Record

FOLDER = Path("runs/examples")
ITEMS = 3
FEATURE = "home"


def files(world: World) -> Iterator[tuple[str, Iterable[Record]]]:
    """File name → records, for each recipe what goes and what stays."""
    known = [record for split in KNOWN for record in world.splits[split]]
    asked = world.splits["forget"]  # the four people who asked
    first = asked[0].entity
    yield "unseen", world.splits["holdout"]

    own = [record for record in asked if record.entity == first]
    yield "item", own[:ITEMS]
    yield "item-neighbors", own[ITEMS:]
    yield "item-retain", [record for record in known if record.entity != first]

    feature = [record for record in known if f".{FEATURE}." in record.id]
    yield "feature", feature
    yield "feature-retain", [record for record in known if record not in feature]

    yield "class", asked
    yield "class-hard", world.splits["forget_hard"]
    yield "class-retain", [record for record in known if record not in asked]

    backwards = [record for record in world.other_forms if record.form == "reverse"]
    trained = [record for i, record in enumerate(backwards) if i % 3]
    held_out = [record for i, record in enumerate(backwards) if i % 3 == 0]
    yield "task", trained
    yield "task-hard", [_of_task(record, trained[0]) for record in held_out]
    yield "task-retain", known

    for number, person in enumerate(dict.fromkeys(record.entity for record in asked), start=1):
        yield f"stream-{number}", [record for record in asked if record.entity == person]


def _of_task(record: Record, trained: Record) -> Record:
    """Another instance of the task: it shows whether the skill went, or only the questions trained on."""
    return Record(
        record.id, record.entity, record.prompt, record.answer, source_id=trained.id, form="reverse"
    )


def make(folder: Path = FOLDER) -> Path:
    """Write the files and train the models, once."""
    made = Personas("tiny").prepare(folder.parent / ".cache" / "benchmarks")
    for name, source in (("model", made.original), ("oracle", made.oracle)):
        if source is not None and not (folder / name).exists():
            shutil.copytree(source, folder / name)
    for name, records in files(make_world("tiny")):
        lines = [json.dumps(record.as_dict(), ensure_ascii=False) for record in records]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


if __name__ == "__main__":
    print(make(), file=sys.stdout)
