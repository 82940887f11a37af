"""What each method is given in the behavior tests on the tiny trained model, where its defaults do not fit.

Published constants are made for billions of parameters; these are made for two layers of width 32.
"""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from expunge.subjects import save_subject
from expunge.testing import tiny_subject


@dataclass(frozen=True)
class Tiny:
    """Hyper-parameters, optimizer steps, learning rate; `kept`: share of retain hits that must be left."""

    hyper: dict = field(default_factory=dict)
    steps: int = 30
    lr: float = 5e-3
    kept: float = 0.8


TINY = {
    "ga": Tiny(kept=0.0),  # unbounded, and nothing holds it back
    "ga_kl": Tiny(kept=0.6),
    "graddiff": Tiny(kept=0.7),
    "pdu": Tiny({"forget_weight": 0.01}),  # logits of a width-32 model are far apart: the square is large
    "tarf": Tiny({"hidden": 0.0, "identify": 0.1}, steps=60),
    "sisa": Tiny({"shards": 2, "replay": "none"}, steps=300, lr=1e-2),
    "sharded_lora": Tiny(
        {"shards": 2, "splits": ("retain",), "public": ("calibration",), "aggregate": "mixture"},
        steps=120,
        lr=1e-2,
    ),
    "retrain": Tiny(steps=100, lr=1e-2),
    "rmu": Tiny({"layer": 1, "retain_weight": 10.0}, lr=1e-2),
    "adaptive_rmu": Tiny({"layer": 1, "retain_weight": 10.0}, lr=1e-2),
    "task_vector": Tiny({"alpha": 2.0}, lr=1e-3),
    "negmerge": Tiny({"alpha": 2.0}, lr=1e-3),
    "msa": Tiny({"alpha": 0.25, "beta": 0.25}, steps=70, lr=1e-2),
    "newton": Tiny({"strength": 0.03}),
    "rome": Tiny({"prefixes": 1}),
    "memit": Tiny({"prior": 1.0, "clamp": 2.0, "prefixes": 1}),
    "lunar": Tiny({"strength": 1.5}),
    "rr": Tiny({"retain_weight": 10.0, "forget_weight": 1.0}, lr=1e-2),
    "mudman": Tiny({"unlearning_rate": 1.0, "retain_lr": 1.0, "adversary_lr": 1e-2}, steps=60),
    "repselect": Tiny({"q": 8, "eta": 0.6, "lora_lr": 0.1, "budget": 2.0, "rounds": 20}),
    "cir": Tiny({"size": 0.1, "retain_lr": 1.0, "budget": 3.0, "layers": (0, 1), "acts": 4, "grads": 4}),
    "idk_ap": Tiny(kept=0.7),  # it asks only that the answer wins
    "eco": Tiny({"target": 1.5}),  # even a wrong prompt leaves most tokens of an answer likely here
    "uld": Tiny(steps=100),
    "kl_gap": Tiny({"epochs": 20.0, "retain_weight": 1.0}),
    "whp": Tiny({"reinforce_epochs": 20.0, "alpha": 5.0}),
    "grpo_leak": Tiny({"max_new_tokens": 28}, lr=2e-3),
    "quark": Tiny({"max_new_tokens": 28}, lr=2e-3),
    "undo": Tiny({"epochs": 150.0, "lr": 1e-2}),
}

TEACHER_RATES = {"kl_gap": {"lr": 1e-2}, "whp": {"reinforce_lr": 1e-2}}
"""At the rates of large models their teachers learn nothing but rounding errors."""


@cache
def needed(name: str) -> dict:
    """Settings without which a method has nothing to start from."""
    if name in TEACHER_RATES:
        return TEACHER_RATES[name]
    if name != "msa":
        return {}
    folder = Path(mkdtemp(prefix="before-exposure-")) / "base"
    return {"base": str(save_subject(tiny_subject(seed=1), folder))}
