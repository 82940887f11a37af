"""Files for muse-sustain.yaml: MUSE's news in four requests, and a tiny model that knows all of them.

`python recipes/muse_sustain.py [FOLDER WITH MUSE] [MODEL]` makes them in runs/muse-files.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from expunge.benchmarks.muse import FOLDS, Muse

FOLDER = Path("runs/muse-files")
OPTIONS = {"words": 40, "documents": 8, "pieces": 4, "shots": 0, "epochs": 40}
SHARED = ("retain", "calibration", "report", "holdout")


def make(data: str, model: str, folder: Path = FOLDER) -> Path:
    """Write the files and train the model, once; it is the original of every request."""
    requests = [
        Muse.from_part(f"news-sust-{k}", folder=data, model=model, **OPTIONS) for k in range(1, FOLDS + 1)
    ]
    made = requests[0].prepare(folder.parent / ".cache" / "benchmarks")
    if not (folder / "model").exists():
        shutil.copytree(made.original, folder / "model")
    files = {split: made.request[split] for split in SHARED}
    files |= {f"request-{k}": benchmark.request().forget for k, benchmark in enumerate(requests, start=1)}
    for name, records in files.items():
        lines = [json.dumps(record.as_dict(), ensure_ascii=False) for record in records]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


if __name__ == "__main__":
    given = sys.argv[1:] + ["../shared/data/muse", "../shared/models/stories260K"][len(sys.argv) - 1 :]
    print(make(*given[:2]))
