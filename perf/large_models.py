"""What large models take, by sums held against measured small ones: `python -m perf.large_models`.

Writes docs/large-models.md. Bytes: `expunge.training.footprint`, beside the live tensor bytes of real steps.
Time: operations over a speed; on this machine the speed of the smallest model foretells that of the others.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

import torch

from expunge.data.request import Request
from expunge.methods.likelihood.ascent import GradientDifference
from expunge.training.footprint import Size, hollow, inference_flops, size_of, step_flops, step_memory
from expunge.training.loop import Loop
from expunge.training.settings import TrainSettings
from expunge.training.unlearn import UnlearnTask
from perf.bench import machine
from perf.memory import live_bytes
from perf.world import make_records, make_subject

ROOT = Path(__file__).parents[1]
MEASURED = ((256, 896, 4, 8), (256, 896, 8, 8), (512, 1792, 8, 8), (768, 2560, 12, 12))
"""Width, inner width, blocks, heads."""
ROWS = 8

LLAMAS = {"1B": (2048, 8192, 16, 32), "8B": (4096, 14336, 32, 32), "70B": (8192, 28672, 80, 64)}
"""Width, inner width, blocks, heads."""

TOKENS, ANSWERS = 4096, 2048
"""Of a micro-batch on one device, and those of them that are answers."""
RANK = 16
GPU, SHARE = 989e12, 0.35
"""Peak of a GPU of 80 GB in bf16, and the share of it that is assumed, not measured."""

FORGET, RETAIN, LENGTH, EPOCHS = 1000, 5000, 200, 5
"""A request: records, their tokens, passes over the forget set (with as many retain rows)."""


def measured() -> list[dict[str, Any]]:
    """Foretold and held bytes, and seconds a step, of real models."""
    found = []
    for shape in MEASURED:
        told: dict[str, Any] = {}
        held = live_bytes(_build(shape, told))
        foretold = step_memory(told["size"], tokens=told["tokens"], answers=told["answers"])
        foretold["gradients and optimizer"] = foretold["gradients and optimizer"] * 8 // 12
        foretold["logits and their gradient"] //= 2  # gradients come after the moment that is measured
        flops = step_flops(told["size"], told["tokens"])
        found.append(
            {
                "parameters": told["size"].parameters,
                "held": held,
                "foretold": sum(foretold.values()),
                "seconds": told["seconds"],
                "speed": flops / told["seconds"],
                "flops": flops,
            }
        )
    return found


def _build(shape: tuple[int, int, int, int], told: dict[str, Any]) -> Callable[[], Any]:
    def build() -> tuple[Callable[[], Any], Callable[[], Any]]:
        subject = make_subject(*shape)
        request = Request({s: make_records(ROWS, s) for s in ("forget", "retain")})
        settings = TrainSettings(batch=ROWS)
        task = UnlearnTask(GradientDifference(), subject, request, settings)
        loop, micro = Loop(subject, task, settings), task.micro_batches(0)[0]
        rows = [subject.encoder.encode(r) for s in ("forget", "retain") for r in request[s]]
        told.update(
            size=size_of(subject.model), tokens=task.tokens(micro), answers=sum(r.num_targets for r in rows)
        )

        def step() -> None:
            began = process_time()
            loop.gradients(0)
            loop.optimizer.step()
            loop.optimizer.zero_grad(set_to_none=True)
            told["seconds"] = process_time() - began

        return step, lambda: task.terms(micro)

    return build


# By arithmetic -------------------------------------------------------------------------------------------

LORA = {"adapter": True, "master": 2, "checkpointing": True}
ALL = {"bf16": True, "checkpointing": True}
PLANS: tuple[tuple[str, str, int, dict[str, Any]], ...] = (
    ("LoRA, one GPU", "8B", 1, LORA),
    ("all weights, one GPU", "1B", 1, ALL),
    ("all weights, FSDP2, 8 GPUs", "8B", 8, ALL),
    ("LoRA, FSDP2, 8 GPUs", "70B", 8, LORA),
    ("all weights, FSDP2, 8 GPUs", "70B", 8, ALL),
    ("all weights, FSDP2, 16 GPUs", "70B", 16, ALL),
    ("all weights, FSDP2, 32 GPUs", "70B", 32, ALL),
)
"""What is done, model, devices, how."""


def sizes() -> dict[str, Size]:
    found = {}
    for name, (width, inner, blocks, heads) in LLAMAS.items():
        config = {
            "model_type": "llama", "hidden_size": width, "intermediate_size": inner,
            "num_hidden_layers": blocks, "num_attention_heads": heads, "num_key_value_heads": 8,
            "vocab_size": 128_256,
            "tie_word_embeddings": name == "1B",
        }  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
            found[name] = size_of(hollow(folder))
    return found


def planned(size: Size, devices: int, how: dict[str, Any]) -> dict[str, Any]:
    trained = RANK * size.lora if how.get("adapter") else None
    memory = step_memory(size, tokens=TOKENS, answers=ANSWERS, trained=trained, shards=devices, **how)
    speed = devices * GPU * SHARE
    flops = step_flops(size, 2 * FORGET * LENGTH * EPOCHS, trained=trained, checkpointing=True)
    read = inference_flops(size, (FORGET + RETAIN) * LENGTH)
    total = sum(memory.values())
    return {"memory": memory, "total": total, "train": flops / speed, "score": read / speed}


PAGE = """# Large models

Written by `python -m perf.large_models` (part of `make bench`). No model of this size was run here: these
are sums, held against small models that were.

## The sums against measured steps

GradDiff, {rows} + {rows} records with the lengths of TOFU, fp32, all weights, {processor}, one thread.
Held: bytes of all live tensors between forward and backward pass. Time foretold: operations of the step
at the speed that the *first* row reached.

| parameters | foretold | held | | seconds foretold | measured | |
|---|---|---|---|---|---|---|
{measured}

Bytes agree. Time does as far as the speed of the kernels is the same for all sizes; larger products run
faster, so the sum is a bound from above here. On a GPU the speed is assumed, and `perf/gpu.py` measures
it.

## A step, in bytes on each device

{tokens} tokens a micro-batch on each device, {answers} of them answers, activations computed again,
vocabulary of 128,256. fp32 master weights with bf16 compute where all weights are trained; bf16 weights
and an fp32 adapter of rank {rank} for LoRA.

| what | model | weights | gradients, optimizer | activations | logits | other | sum | in 80 GB |
|---|---|---|---|---|---|---|---|---|
{memory}

`expunge plan RECIPE --devices 8 --on cuda` says the same of your recipe.

## A request, in time

{forget:,} forget and {retain:,} retain records of {length} tokens, {epochs} epochs, at {share:.0%} of
{peak:.0f} TFLOP/s a GPU (assumed). Scoring: one pass over all records, of one model; a default audit
takes some dozens of them, and the fine-tuning attacks take trainings of the same kind as unlearning.

| what | model | unlearning | one scoring pass |
|---|---|---|---|
{time}

## What 70B needs

- **Training**: LoRA on one machine with eight GPUs of 80 GB: `strategy: fsdp2`, `adapter: lora`,
  `dtype: bfloat16`, `train.gradient_checkpointing: true`. The reference is cached before training; no
  second model is in memory.
- **Measuring and attacking: not on 80 GB.** Only the training is divided so far. Evidence is taken with the
  whole model on each device, {whole:.0f} GB in bf16 for 70B, and attacks that train need more. This version
  finishes a 70B run only where a device holds that, or on the CPU of a large machine, slowly.
- **All weights** take sixteen bytes a parameter and more: see the table for how many GPUs that is.
- **Control** mixes original and unlearned weights in place, tensor by tensor: two copies of the weights
  in host memory, {pair:.0f} GB in fp32 or half of it in bf16, and one on the GPUs.
- **Disk**: original, unlearned and controlled model, and the oracle where it is retrained: {disk:.0f} GB
  in bf16.
- What was not run: any of this. `strategy: fsdp2` is tested with two processes on the CPU; see
  [scale.md](scale.md).
"""


def page(found: list[dict[str, Any]], where: dict[str, Any]) -> str:
    """docs/large-models.md"""
    first, known = found[0], sizes()
    plans = [(name, model, planned(known[model], devices, how)) for name, model, devices, how in PLANS]
    rows = [
        (
            f"{p['parameters'] / 1e6:.1f} M", _size(p["foretold"]), _size(p["held"]),
            f"{p['foretold'] / p['held']:.2f}", f"{p['flops'] / first['speed']:.2f}", f"{p['seconds']:.2f}",
            f"{p['flops'] / first['speed'] / p['seconds']:.2f}",
        )
        for p in found
    ]  # fmt: skip
    memory, times = [], []
    for name, model, made in plans:
        parts = made["memory"]
        named = ("weights", "gradients and optimizer", "activations", "logits and their gradient")
        other = made["total"] - sum(parts.get(n, 0) for n in named)
        fits = "yes" if made["total"] < 75e9 else "no"
        memory.append(
            (name, model, *(_size(parts.get(n, 0)) for n in named), _size(other), _size(made["total"]), fits)
        )
        times.append((name, model, _time(made["train"]), _time(made["score"])))
    largest = known["70B"].parameters
    return PAGE.format(
        **where, rows=ROWS, measured=_table(rows), memory=_table(memory), time=_table(times), rank=RANK,
        tokens=TOKENS, answers=ANSWERS, forget=FORGET, retain=RETAIN, length=LENGTH, epochs=EPOCHS,
        share=SHARE, peak=GPU / 1e12, pair=8 * largest / 1e9, whole=2 * largest / 1e9,
        disk=4 * 2 * largest / 1e9,
    )  # fmt: skip


def _table(rows: list[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _size(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def main() -> None:
    torch.set_num_threads(1)
    text = page(measured(), machine())
    (ROOT / "docs" / "large-models.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
