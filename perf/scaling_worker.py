"""One rank of perf.scaling's last curve: trains and scores its share, rank 0 writes the clock's time down."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch

from expunge import ranks
from expunge.data.request import Request
from expunge.measure.score import score_sheet
from expunge.measure.sheet import make_sheet
from expunge.methods.likelihood.npo import NPO
from expunge.subjects import load_subject
from expunge.training.loop import Loop
from expunge.training.settings import TrainSettings
from expunge.training.unlearn import UnlearnTask
from perf.world import make_records

RECORDS, BATCH, STEPS = 128, 32, 4


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    ranks.join()
    subject = load_subject(folder / "model", device="cpu")
    request = Request({name: make_records(RECORDS, name) for name in ("forget", "retain")})
    settings = TrainSettings(lr=1e-5, batch=BATCH, steps=STEPS, warmup=0.0, schedule="constant")
    loop = Loop(subject, UnlearnTask(NPO(), subject, request, settings), settings)
    ranks.barrier()
    began = time.perf_counter()
    loop.run()
    ranks.barrier()
    trained = time.perf_counter()
    score_sheet(subject, make_sheet(subject.encoder, request.forget, "forget"))
    ranks.barrier()
    scored = time.perf_counter()
    if ranks.is_first():
        found = {"processes": ranks.world(), "steps": STEPS, "records": RECORDS, "batch": BATCH,
                 "train": trained - began, "score": scored - trained}  # fmt: skip
        (folder / f"{ranks.world()}.json").write_text(json.dumps(found), encoding="utf-8")
    ranks.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
