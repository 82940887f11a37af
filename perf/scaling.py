"""How time grows with the forget set, the model and the processes: `python -m perf.scaling`.

Writes docs/scaling.md. Every curve is measured in one run; sizes are visited in turn, each the given number
of times, and the median is told. Time is processor time but for processes, where it is the clock's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import process_time
from typing import Any

import torch

from expunge.data.request import Request
from expunge.measure.score import score_sheet
from expunge.measure.sheet import make_sheet
from expunge.methods.likelihood.npo import NPO
from expunge.subjects import save_subject
from expunge.training.footprint import inference_flops, size_of, step_flops
from expunge.training.loop import Loop
from expunge.training.settings import TrainSettings
from expunge.training.unlearn import UnlearnTask
from perf.bench import machine
from perf.world import make_records, make_subject

ROOT = Path(__file__).parents[1]
BATCH = 16
FORGET = (32, 64, 128, 256)
MODELS = ((64, 224, 2, 2), (128, 448, 4, 4), (256, 896, 8, 8), (512, 1792, 8, 8))
"""Width, inner width, blocks, heads."""

Curve = list[dict[str, Any]]


def in_turn(makers: Sequence[Callable[[], dict[str, Any]]], repeats: int) -> Curve:
    """Each point `repeats` times, the points in turn; of every number the median."""
    found = [[make() for make in makers] for _ in range(repeats)]
    return [
        {name: statistics.median(turn[i][name] for turn in found) for name in found[0][i]}
        for i in range(len(makers))
    ]


def timed(work: Callable[[], Any]) -> float:
    began = process_time()
    work()
    return process_time() - began


def point(subject: Any, records: int, steps: int) -> dict[str, Any]:
    """Seconds of preparation (encoding, reference), of `steps` training steps, of the scoring pass."""
    request = Request({name: make_records(records, name) for name in ("forget", "retain")})
    settings = TrainSettings(lr=1e-5, batch=min(BATCH, records), warmup=0.0, schedule="constant")
    made: list[UnlearnTask] = []
    prepared = timed(lambda: made.append(UnlearnTask(NPO(), subject, request, settings)))
    (task,) = made
    loop = Loop(subject, task, settings)
    subject.model.train()

    def train() -> None:
        for step in range(steps):
            loop.gradients(step)
            loop.optimizer.step()
            loop.optimizer.zero_grad(set_to_none=True)

    trained = timed(train)
    tokens = loop.result.tokens
    sheet = make_sheet(subject.encoder, request.forget, "forget")
    scored = timed(lambda: score_sheet(subject, sheet))
    read = sum(len(line.windows[0].ids) for line in sheet.lines)
    return {
        "records": records, "parameters": subject.num_parameters(), "prepare": prepared, "train": trained,
        "tokens": tokens, "score": scored, "read": read,
    }  # fmt: skip


def over_forget_set(repeats: int) -> Curve:
    """One epoch over forget sets of growing size."""
    return in_turn([lambda n=n: point(make_subject(), n, -(-n // BATCH)) for n in FORGET], repeats)


def over_models(repeats: int) -> Curve:
    """Two steps and one scoring pass of growing models, against a product of matrices of the same width."""

    def one(shape: tuple[int, int, int, int]) -> dict[str, Any]:
        subject = make_subject(*shape)
        size = size_of(subject.model)
        found = point(subject, 32, 2)
        peak = matmul_speed(*shape[:2])
        found |= {
            "peak": peak,
            "train share": step_flops(size, found["tokens"]) / found["train"] / peak,
            "score share": inference_flops(size, found["read"]) / found["score"] / peak,
        }
        return found

    return in_turn([lambda s=s: one(s) for s in MODELS], repeats)


def matmul_speed(width: int, inner: int, rows: int = 2048) -> float:
    """Operations a second of [rows, width] · [width, inner]: the largest product of a block, alone."""
    a, b = torch.randn(rows, width), torch.randn(width, inner)
    a @ b
    times = [timed(lambda: [a @ b for _ in range(4)]) / 4 for _ in range(3)]
    return 2.0 * rows * width * inner / min(times)


def over_processes(counts: Sequence[int], repeats: int) -> Curve:
    """The same steps and the same scoring pass, divided over processes with a thread each."""
    with tempfile.TemporaryDirectory() as folder:
        save_subject(make_subject(), Path(folder) / "model")
        return in_turn([lambda n=n: _spread(folder, n) for n in counts], repeats)


def _spread(folder: str, count: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}",
               "-m", "perf.scaling_worker", folder]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True)
    return json.loads((Path(folder) / f"{count}.json").read_text(encoding="utf-8"))


# The page ------------------------------------------------------------------------------------------------

PAGE = """# Scaling

Written by `python -m perf.scaling` (part of `make bench`).

{processor}, {cores} cores, {threads} torch thread a process, fp32; torch {torch}, transformers
{transformers}; {date}. NPO, random Llamas, invented records with the lengths of TOFU, batches of
{batch} + {batch}.

## Over the forget set

One epoch and one scoring pass, 9.7 M parameters. Flat columns mean: twice the records, twice the time.

| records | preparation, ms a record | training, ms a record | scoring, ms a record |
|---|---|---|---|
{forget}

## Over the model

Two steps and one scoring pass over 32 records. Share: of the speed that the largest matrix product of a block
reaches alone on this core, counted by `expunge.training.footprint`; small models lose theirs to everything
that is not a product.

| parameters | training, tokens/s | share | scoring, tokens/s | share |
|---|---|---|---|---|
{models}

## Over processes

`torchrun --nproc-per-node N` on this machine ({cores} cores), the clock's time of {steps} steps of
{spread_batch} + {spread_batch} and of scoring {records} records.
Losses and scores are those of one process (tests/training/test_processes.py).

| processes | training, s | speed-up | scoring, s | speed-up |
|---|---|---|---|---|
{spread}

Several machines and GPUs: not run. What large models take, by arithmetic: [large-models.md](large-models.md).
"""


def page(forget: Curve, models: Curve, spread: Curve, where: dict[str, Any]) -> str:
    """docs/scaling.md"""
    first = spread[0]
    rows = {
        "forget": [(p["records"], *(_each(p, n) for n in ("prepare", "train", "score"))) for p in forget],
        "models": [
            (
                f"{p['parameters'] / 1e6:.1f} M",
                f"{p['tokens'] / p['train']:,.0f}", f"{p['train share']:.0%}",
                f"{p['read'] / p['score']:,.0f}", f"{p['score share']:.0%}",
            )
            for p in models
        ],
        "spread": [
            (
                p["processes"],
                f"{p['train']:.1f}", f"{first['train'] / p['train']:.2f}",
                f"{p['score']:.1f}", f"{first['score'] / p['score']:.2f}",
            )
            for p in spread
        ],
    }  # fmt: skip
    tables = {
        name: "\n".join(f"| {' | '.join(map(str, row))} |" for row in part) for name, part in rows.items()
    }
    told = {name: first[name] for name in ("steps", "records")}
    return PAGE.format(**where, **tables, **told, batch=BATCH, spread_batch=first["batch"])


def _each(p: dict[str, Any], name: str) -> str:
    return f"{1000 * p[name] / p['records']:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    forget, models = over_forget_set(options.repeats), over_models(options.repeats)
    text = page(forget, models, over_processes((1, 2), options.repeats), machine())
    (ROOT / "docs" / "scaling.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
