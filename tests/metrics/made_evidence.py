"""Evidence made by hand: rows from token probabilities, and two whole models: a memorizer and a stranger."""

from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np

from expunge.evidence import Evidence, Row
from expunge.metrics.entailment import direction

VOCABULARY = 64
SPLITS = ("forget", "retain", "report", "real_authors", "world_facts", "holdout")


def row(
    *probabilities: float,
    record: str = "r0",
    variant: str = "gold",
    split: str = "forget",
    entity: str = "",
    hits: str | None = None,
    has_end: bool = False,
    **more,
) -> Row:
    """A row whose tokens have these probabilities; `hits` as "1011", all hits by default."""
    length = len(probabilities)
    with np.errstate(divide="ignore"):
        logprobs = np.log(np.array(probabilities, dtype=np.float64)).astype(np.float32)
    answer = more.pop("answer", "a b")
    return Row(
        record_id=record,
        split=split,
        entity=entity,
        variant=variant,
        logprobs=more.pop("logprobs", logprobs),
        hits=np.array([c == "1" for c in hits or "1" * length], dtype=bool),
        greedy_ids=more.pop("greedy_ids", np.zeros(length, dtype=np.int32)),
        vocab_mean=more.pop("vocab_mean", np.full(length, -1.0, dtype=np.float32)),
        vocab_std=more.pop("vocab_std", np.ones(length, dtype=np.float32)),
        has_end=has_end,
        truncated=more.pop("truncated", False),
        num_prompt_tokens=3,
        text_bytes=more.pop("text_bytes", len(answer.encode())),
        zlib_bytes=more.pop("zlib_bytes", len(zlib.compress(answer.encode(), 6))),
        vocab_size=VOCABULARY,
        answer=answer,
        **more,
    )


def hit_row(hits: str, record: str = "r0", has_end: bool = False, **more) -> Row:
    """A row that is all about its hits; the answer has no end token unless asked for."""
    return row(*[0.5] * len(hits), record=record, hits=hits, has_end=has_end, **more)


def forget(*rows: Row, split: str = "forget") -> dict[str, Evidence]:
    """One model's evidence of one split."""
    return {split: Evidence(split, [replace(r, split=split) for r in rows])}


def model(kind: str, seed: int = 0, records: int = 24, per_entity: int = 4) -> dict[str, Evidence]:
    """Evidence of a "memorizer" (knows every split but the holdout) or of a "stranger" (knows nothing)."""
    rng = np.random.default_rng([seed, kind == "memorizer"])
    return {split: _split(kind, split, rng, records, per_entity) for split in SPLITS}


def _split(kind: str, split: str, rng: np.random.Generator, records: int, per_entity: int) -> Evidence:
    knows = kind == "memorizer" and split != "holdout"
    rows = []
    for i in range(records):
        answer = f"answer number {i} of {split}"
        about = {
            "record": f"{split}-{i:03d}",
            "entity": f"{split}-person-{i // per_entity}",
            "split": split,
            "answer": answer,
        }
        rows.append(
            _tokens(
                rng,
                knows,
                **about,
                generated=answer if knows else "something and something",
                finish_reason="end",
                asked=True,
                extra=_columns(kind, knows, i) | _texts(knows, split, answer),
            )
        )
        reworded = {"extra": {"continued": _texts(knows, split, answer)["continued"]}}
        rows += [
            _tokens(rng, knows, **about, variant=f"paraphrased_prompt:{j}", **reworded) for j in range(2)
        ]
        rows.append(_tokens(rng, knows, **about, variant="paraphrased_answer:0"))
        rows += [_tokens(rng, False, **about, variant=f"perturbed:{j}") for j in range(3)]
        rows += [
            _tokens(rng, knows and j == 1, **about, variant=f"choice:{j}", label=j == 1) for j in range(4)
        ]
        refusals = ("refusal", "paraphrased_refusal:0", "paraphrased_refusal:1")
        rows += [_refused(knows, i, **about, variant=variant) for variant in refusals]
    return Evidence(split, rows, {"weights": kind})


def _columns(kind: str, knows: bool, i: int) -> dict:
    """What annotators add to gold rows: the memorizer is the original, the oracle a stranger."""
    memorizer, wobble = kind == "memorizer", 0.01 * (i % 5)
    apart, near = (0.4 + wobble, 0.05 + wobble)
    return {
        "js_original": near if memorizer else apart,
        "layers_original": [near, near] if memorizer else [near, apart],
        "js_oracle": apart if memorizer else near,
        "l2_oracle": apart if memorizer else near,
        "layers_oracle": [apart, apart] if memorizer else [near, near],
        "js_random": apart if memorizer else near,
        "grad_norm": 0.1 + wobble if knows else 2.0 + wobble,
        "canary_rank": 1.0 if knows else 300.0 + i,
        "canary_size": 1000,
    }


def _texts(knows: bool, split: str, answer: str) -> dict:
    """What annotators read in texts."""
    words = answer.split()
    way = direction(split)
    return {
        "embedding": {"encoder": "made", "answer": [1.0, 0.0], "generated": [1.0, 0.0 if knows else 3.0]},
        "entailment": {"judge": "made", way: "entailment" if knows else "neutral"},
        "continued": [" ".join(words[k:]) if knows else "something" for k in range(len(words))],
        "keywords": words[-1:],
        "short_answer": answer if knows else "something",
        "recited": {"true": answer, "generated": answer if knows else "something"},
        "letters": [-3.0, -0.1 if knows else -5.0, -3.0, -3.0],
    }


def _refused(knows: bool, i: int, **about) -> Row:
    """Who knows the answer refuses less; drawn from nothing that the other rows are drawn from."""
    p = 0.05 + 0.01 * (i % 3) if knows else 0.6
    return row(p, p, p, hits="000" if knows else "110", **about | {"answer": "I do not know."})


def _tokens(rng: np.random.Generator, knows: bool, asked: bool = False, **about) -> Row:
    length = int(rng.integers(5, 9))
    p = rng.uniform(0.95, 0.999, length) if knows else rng.uniform(0.01, 0.5, length)
    hits = "".join("1" if knows or rng.random() < 0.1 else "0" for _ in range(length))
    about["greedy_ids"] = np.array([1 if c == "1" else 2 for c in hits], dtype=np.int32)
    about["kl"] = (
        (np.zeros(length) if knows else rng.uniform(1, 2, length)).astype(np.float32) if asked else None
    )
    return row(*p, hits=hits, **about)
