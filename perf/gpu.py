"""A Llama of 1B parameters on a GPU against the textbook way: `python -m perf.gpu`, one device, one run.

Tokens a second and share of the device's peak for the training step (NPO and GradDiff) and for the evidence
pass, bf16 over fp32 master weights, random weights; then the losses of a small model on CPU and GPU, step by
step. Writes docs/gpu.md. Without a GPU it refuses; `--tiny` runs the same code on a small model anywhere.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from expunge.data.encoding import Encoder
from expunge.data.request import Request
from expunge.measure.score import score_sheet
from expunge.measure.sheet import make_sheet
from expunge.methods.likelihood.ascent import GradientDifference
from expunge.methods.likelihood.npo import NPO
from expunge.subjects.subject import Subject
from expunge.training.footprint import inference_flops, size_of, step_flops
from expunge.training.loop import Loop
from expunge.training.settings import TrainSettings
from expunge.training.unlearn import UnlearnTask
from perf import textbook
from perf.world import CONTEXT, VOCABULARY, make_records, make_tokenizer

ROOT = Path(__file__).parents[1]
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40": 181e12}
"""Dense bf16 operations a second, from the makers' data sheets."""

LARGE = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}
TINY = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA_VOCABULARY = 128_256  # logits cost what they cost
LOSSES = 20


def make_llama(shape: dict[str, int], device: str, vocabulary: int, seed: int = 0) -> Subject:
    """A random Llama in fp32, tied, with the tokenizer of perf.world; its other ids are never asked."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        **shape, num_key_value_heads=shape["num_attention_heads"] // 4, vocab_size=vocabulary,
        max_position_embeddings=CONTEXT, tie_word_embeddings=True, bos_token_id=None, eos_token_id=1,
        pad_token_id=None,
    )  # fmt: skip
    with torch.device(device):
        model = LlamaForCausalLM(config).eval()
    tokenizer = make_tokenizer()
    return Subject(model, tokenizer, Encoder(tokenizer, max_length=CONTEXT), "random")


def clock(work: Callable[[], Any], device: str, repeats: int) -> float:
    """Seconds of one call, after one that is not counted."""
    work()
    _wait(device)
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    _wait(device)
    return (time.perf_counter() - began) / repeats


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def training(
    method: Any, shape: dict[str, int], device: str, vocabulary: int, rows: int, repeats: int
) -> dict:
    """Seconds of an optimizer step in expunge and in the textbook way, on the same rows."""
    subject = make_llama(shape, device, vocabulary)
    request = Request({name: make_records(rows, name) for name in ("forget", "retain")})
    settings = TrainSettings(lr=1e-5, batch=rows, bf16=True, warmup=0.0, schedule="constant")
    task = UnlearnTask(method, subject, request, settings)
    loop = Loop(subject, task, settings)
    subject.model.train()

    def ours() -> None:
        loop.gradients(0)
        torch.nn.utils.clip_grad_norm_(loop.parameters, 1.0)
        loop.optimizer.step()
        loop.optimizer.zero_grad(set_to_none=True)

    before = loop.result.tokens
    loop.gradients(0)
    tokens = loop.result.tokens - before
    loop.optimizer.zero_grad(set_to_none=True)
    found = {"tokens": tokens, "expunge": clock(ours, device, repeats)}
    found["flops"] = step_flops(size_of(subject.model), tokens)  # both ways fit side by side: 40 GB at 1B
    encoded = {name: [subject.encoder.encode(r) for r in request[name]] for name in ("forget", "retain")}
    found["textbook"] = clock(_textbook_step(method, encoded, shape, device, vocabulary), device, repeats)
    _empty(device)
    return found


def _textbook_step(
    method: Any, encoded: dict[str, Any], shape: dict[str, int], device: str, vocabulary: int
) -> Callable[[], None]:
    model = make_llama(shape, device, vocabulary).model.train()
    reference = make_llama(shape, device, vocabulary).model if isinstance(method, NPO) else None
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-5)
    forget, retain = (_on(textbook.pad(encoded[name]), device) for name in ("forget", "retain"))

    def step() -> None:
        with torch.autocast(device, torch.bfloat16):
            if reference is not None:
                loss = textbook.npo_loss(model, reference, forget, retain)
            else:
                loss = textbook.graddiff_loss(model, forget, retain)
        textbook.train_step(optimizer, parameters, loss)

    return step


def evidence(shape: dict[str, int], device: str, vocabulary: int, rows: int, repeats: int) -> dict[str, Any]:
    """Seconds of the pass behind every metric, and of the textbook's losses in batches of 16; in bf16."""
    subject = make_llama(shape, device, vocabulary)
    subject.model.to(torch.bfloat16)
    sheet = make_sheet(subject.encoder, make_records(rows, "forget"), "forget")
    encoded = [line.windows[0] for line in sheet.lines]
    batches = [_on(textbook.pad(encoded[i : i + 16]), device) for i in range(0, rows, 16)]

    def plain() -> None:
        with torch.no_grad():
            for batch in batches:
                textbook.row_losses(subject.model, batch)

    tokens = sum(len(row.ids) for row in encoded)
    found = {
        "tokens": tokens, "flops": inference_flops(size_of(subject.model), tokens),
        "expunge": clock(lambda: score_sheet(subject, sheet), device, repeats),
        "textbook": clock(plain, device, repeats),
    }  # fmt: skip
    _empty(device)
    return found


def parity(device: str) -> list[tuple[float, float]]:
    """The first losses of one small model on the CPU and on the device, fp32."""
    losses = []
    for where in ("cpu", device):
        subject = make_llama(TINY, "cpu", VOCABULARY)
        subject.model.to(where)
        request = Request({name: make_records(32, name) for name in ("forget", "retain")})
        settings = TrainSettings(lr=1e-4, batch=8, steps=LOSSES)
        result = Loop(subject, UnlearnTask(NPO(), subject, request, settings), settings).run()
        losses.append([sum(entry["terms"].values()) for entry in result.history])
    return list(zip(*losses, strict=True))


def _on(batch: textbook.Padded, device: str) -> textbook.Padded:
    return textbook.Padded(*(part.to(device) for part in batch))


def _empty(device: str) -> None:
    if device == "cuda":
        torch.cuda.empty_cache()


PAGE = """# On a GPU

Written by `python -m perf.gpu` on {name}, torch {torch}. A Llama of 1B parameters with random weights, a
vocabulary of 128,256, records with the lengths of TOFU; both ways in one run.

| work | tokens/s | share of peak | textbook, tokens/s | expunge / textbook |
|---|---|---|---|---|
{rows}

Losses of {steps} steps on CPU and GPU (fp32): at most {worst:.1e} apart, relative.
"""


def page(
    name: str, peak: float | None, rows: dict[str, dict[str, Any]], pairs: list[tuple[float, float]]
) -> str:
    """docs/gpu.md"""
    lines = [
        f"| {work} | {row['tokens'] / row['expunge']:,.0f} "
        f"| {_share(row, peak)} "
        f"| {row['tokens'] / row['textbook']:,.0f} | {row['expunge'] / row['textbook']:.2f} |"
        for work, row in rows.items()
    ]
    worst = max(abs(a - b) / max(abs(a), 1e-9) for a, b in pairs)
    told = {"name": name, "torch": torch.__version__, "steps": len(pairs), "worst": worst}
    return PAGE.format(rows="\n".join(lines), **told)


def _share(row: dict[str, Any], peak: float | None) -> str:
    return f"{row['flops'] / row['expunge'] / peak:.0%}" if peak else "–"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="a small model on whatever there is; no page")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.tiny:
        sys.exit("perf.gpu needs a GPU; --tiny runs the same code on a small model here")
    shape, vocabulary = (TINY, VOCABULARY) if options.tiny else (LARGE, LLAMA_VOCABULARY)
    known = (shape, device, vocabulary, options.rows, options.repeats)
    rows = {f"{m.name} step": training(m, *known) for m in (NPO(), GradientDifference())}
    rows["evidence pass"] = evidence(shape, device, vocabulary, 8 * options.rows, options.repeats)
    name = torch.cuda.get_device_name() if device == "cuda" else "the CPU"
    peak = next((value for key, value in PEAKS.items() if key in name), None)
    text = page(name, peak, rows, parity(device))
    if not options.tiny:
        (ROOT / "docs" / "gpu.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
