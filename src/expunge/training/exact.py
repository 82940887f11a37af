"""What makes a removal exact: where training began, what it saw, that a replay gives the same bits."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch

from expunge.data.records import Record
from expunge.data.request import Request
from expunge.errors import ConfigError, DataError, Problem
from expunge.stats import seed_from
from expunge.subjects.subject import Subject, load_subject
from expunge.subjects.weights import fingerprint
from expunge.training.shards import Shards, replay

__all__ = [
    "Start",
    "before_exposure",
    "certify_shards",
    "environment",
    "judged",
    "reinitialized",
    "what_stays",
]

NEVER = ("forget", "forget_hard", "forget_held_out", "forget_hidden", "forget_past", "holdout")
"""Splits that an exact method must not learn again."""


def what_stays(request: Request, splits: Sequence[str], method: str) -> list[Record]:
    """The records of these splits, forget records apart: what the model may have learned from."""
    if forbidden := sorted(set(splits) & set(NEVER)):
        raise ConfigError(Problem("method.splits", f"{method} must not train on {', '.join(forbidden)}"))
    if not request.forget:
        raise DataError(
            Problem("forget", f"{method} needs forget records to leave out", "Bring a forget set")
        )
    gone = {record.id for record in request.forget}
    kept = [r for split in splits for r in request[split] if r.id not in gone]
    if not kept:
        raise DataError(Problem("retain", f"{method} has nothing to train on", "Bring a retain set"))
    return kept


class Start(NamedTuple):
    """Weights to train from; `clean`: they carry no influence of the forget set, for this `reason`."""

    subject: Subject
    clean: bool
    reason: str


def before_exposure(subject: Subject, base: str | None, vouched: bool, seed: int) -> Start:
    """The model `base`, or fresh weights of the subject's architecture where there is none."""
    if base is None:
        return Start(reinitialized(subject, seed), True, "training began with random weights")
    start = load_subject(base, device=str(subject.device), max_length=subject.encoder.max_length)
    return judged(start, subject, vouched)


def judged(base: Subject, subject: Subject, vouched: bool) -> Start:
    """Whether a base is clean. No look at its weights tells what a model was trained on: it is where the user
    vouches for it, and never when it is the subject itself.
    """
    if fingerprint(base.model) == fingerprint(subject.model):
        return Start(base, False, "the base is the original model, which has seen the forget set")
    if vouched:
        return Start(base, True, "the base is from before exposure, as the recipe vouches (base_is_clean)")
    reason = "the base may have seen the forget set: nobody vouches for it (base_is_clean: true)"
    return Start(base, False, reason)


def reinitialized(subject: Subject, seed: int) -> Subject:
    """The same architecture with random weights, a function of the seed."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_from(seed, "init") % 2**63)
        model = AutoModelForCausalLM.from_config(copy.deepcopy(subject.config))
    model.to(subject.device)
    return Subject(model.eval(), subject.tokenizer, subject.encoder, "reinitialized", subject.can)


def environment(subject: Subject) -> dict[str, Any]:
    """What the bits depend on beside data, seed and settings."""
    import transformers

    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {**versions, "device": subject.device.type, "threads": torch.get_num_threads()}


def certify_shards(
    shards: Shards,
    served: Subject,
    kept: Sequence[Record],
    again: Literal["affected", "all", "none"],
) -> dict[str, Any]:
    """The certificate of a deletion: how these weights came about, and whether a replay gave them too."""
    certificate = shards.certificate()
    chosen = {"affected": certificate["affected"], "all": list(range(shards.plan.shards)), "none": []}[again]
    differing = replay(certificate, shards.base, kept, shards=chosen)
    return {
        **certificate,
        "exact": shards.clean,
        "reason": shards.origin,
        "replayed": chosen,
        "differing": differing,
        "verified": again != "none" and not differing,
        "fingerprint": served.fingerprint(),
        "environment": environment(shards.base),
    }
