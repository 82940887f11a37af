"""What perf.methods_compared compares: each method with three candidate settings, chosen by the same rule.

A candidate changes what moves its method most: the learning rate, or the method's own step where it has one.
Published constants are made for billions of parameters; where they do nothing to a model of width 64, the
candidates say what does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["CONFIGURATIONS", "Configuration"]


@dataclass(frozen=True)
class Configuration:
    """A method with its axes. `tier` 1 runs three seeds, the others one. `group`: the sub-table it is in."""

    method: str
    candidates: tuple[dict[str, Any], ...]
    tier: int = 1
    group: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    lora: dict[str, Any] | None = None
    transforms: tuple[tuple[str, dict[str, Any]], ...] = ()
    selections: tuple[tuple[str, dict[str, Any]], ...] = ()
    controls: tuple[tuple[str, dict[str, Any]], ...] = ()
    folders: dict[str, str] = field(default_factory=dict)  # setting → original or oracle

    @property
    def seeds(self) -> int:
        return 3 if self.tier == 1 else 1


def rates(*lrs: float, **settings: Any) -> tuple[dict[str, Any], ...]:
    return tuple({"train": {"lr": lr}, "settings": settings} for lr in lrs)


def values(name: str, *several: Any, **train: Any) -> tuple[dict[str, Any], ...]:
    return tuple({"settings": {name: value}, "train": train} for value in several)


LR = rates(3e-4, 1e-3, 3e-3)
LORA = {"rank": 8}
LORA_LR = rates(1e-3, 3e-3, 1e-2)


def _plain() -> dict[str, Configuration]:
    """Objectives under the default axes."""
    made = {
        "ga": "ascent", "graddiff": "ascent", "ga_kl": "ascent", "wga": "ascent", "tnpo": "preference",
        "wtnpo": "preference", "satimp": "ascent", "npo": "preference", "simnpo": "preference",
        "me": "", "altpo": "preference", "dpo": "preference", "idk": "", "idk_ap": "", "undial": "",
        "ceu": "", "jensun": "",
    }  # fmt: skip
    return {name: Configuration(name, LR, group=group) for name, group in made.items()}


def _tier_one() -> dict[str, Configuration]:
    steer = tuple(
        {"train": {"lr": lr}, "settings": {"layer": 1, "retain_weight": weight}}
        for lr, weight in ((3e-3, 10.0), (1e-2, 10.0), (1e-2, 100.0))
    )
    rectified = {
        f"graddiff+{n}": Configuration("graddiff", LR, transforms=((n, {}),)) for n in ("gru", "disruption")
    }
    sam = {
        f"{m}+sam": Configuration(m, LR, transforms=(("sam", {"rho": 0.05}),), group="hardening")
        for m in ("npo", "graddiff")
    }
    masks = {
        f"graddiff in {n}": Configuration("graddiff", LR, selections=((n, s),))
        for n, s in (
            ("salun", {}), ("wagle", {}), ("sure", {}), ("memflex", {}), ("random", {"share": 0.5}),
            ("magnitude", {"share": 0.5}),
        )
    }  # fmt: skip
    modifiers = {
        f"graddiff, {n}": Configuration("graddiff", LR, controls=((n, s),))
        for n, s in (("cap", {"p_min": 0.01}), ("select", {"q": 0.8}), ("temperature", {}))
    }
    return {
        "retrain": Configuration("retrain", rates(1e-3, 3e-3, 5e-3), train={"epochs": 30.0}),
        **_plain(),
        "ihl (fila)": Configuration("ihl", LORA_LR, lora={**LORA, "start": "fila"}),
        "rmu": Configuration("rmu", steer),
        "adaptive_rmu": Configuration("adaptive_rmu", steer),
        "rr": Configuration(
            "rr", rates(1e-2, 3e-2, 1e-1), lora=LORA, train={"epochs": 20.0},
            settings={"forget_weight": 1.0, "retain_weight": 3.0},
        ),
        "undo": Configuration(
            "undo", values("alpha", 0.3, 0.5, 0.7), settings={"lr": 3e-3, "epochs": 30.0}, group="hardening"
        ),
        "repselect": Configuration(
            "repselect", values("eta", 0.1, 0.3, 1.0), settings={"lora_lr": 0.1, "budget": 2.0, "rounds": 30}
        ),
        "mudman": Configuration(
            "mudman", values("unlearning_rate", 0.3, 1.0, 3.0, steps=60),
            settings={"retain_lr": 1.0, "adversary_lr": 1e-2}, group="hardening",
        ),
        **sam, **rectified, **masks,
        "task_vector": Configuration("task_vector", values("alpha", 1.0, 2.0, 5.0)),
        "sisa": Configuration("sisa", values("shards", 2, 3, 4), train={"epochs": 20.0, "lr": 3e-3}),
        "sharded_lora": Configuration("sharded_lora", rates(3e-3, 1e-2, 3e-2), train={"epochs": 20.0}),
        "uld": Configuration("uld", rates(3e-3, 1e-2, 2e-2), train={"epochs": 30.0}),
        "offset": Configuration("offset", LORA_LR, train={"epochs": 30.0}),
        "ucd": Configuration("ucd", LORA_LR, train={"epochs": 30.0}),
        "whp_decode": Configuration("whp_decode", LR, train={"epochs": 30.0}),
        "guardrail": Configuration("guardrail", ({},)),
        "keyword_filter": Configuration("keyword_filter", ({},)),
        **modifiers,
    }  # fmt: skip


def _others() -> dict[str, Configuration]:
    made = {
        name: Configuration(name, LR, tier=2)
        for name in ("llmu", "relearn", "relabel", "tarf", "simsat", "simimp")
    }
    return made | {
        "pdu": Configuration("pdu", LR, tier=2, settings={"forget_weight": 0.01}),
        "soul": Configuration("soul", LR, tier=2, train={"optimizer": "sophia"}),
        "whp": Configuration(
            "whp", values("alpha", 1.0, 5.0, 20.0, lr=3e-3), tier=2,
            settings={"reinforce_epochs": 20.0, "reinforce_lr": 1e-3},
        ),
        "kl_gap": Configuration("kl_gap", LORA_LR, tier=2, settings={"epochs": 40.0, "lr": 3e-3}),
        "cir": Configuration(
            "cir", values("size", 0.1, 0.3, 1.0, steps=30), tier=2,
            settings={"retain_lr": 1.0, "budget": 2.0, "layers": (0, 1), "acts": 8, "grads": 8},
        ),
        "lat": Configuration("lat", LR, tier=2, settings={"toward": 0.0}, group="hardening"),
        "lat off": Configuration("lat", LR, tier=2, settings={"toward": 0.0, "steps": 0}, group="hardening"),
        "lunar": Configuration("lunar", values("strength", 1.0, 2.0, 4.0), tier=2),
        "newton": Configuration("newton", values("strength", 0.01, 0.03, 0.1), tier=2),
        "ssd": Configuration("ssd", values("selection", 1.0, 3.0, 10.0), tier=2),
        "negmerge": Configuration("negmerge", values("alpha", 1.0, 2.0, 5.0), tier=2),
        "rome": Configuration("rome", ({},), tier=2),
        "memit": Configuration("memit", values("prior", 0.1, 1.0, 10.0), tier=2),
        "eco": Configuration("eco", ({},), tier=2),
        **{
            name: Configuration(
                name, rates(3e-4, 1e-3), tier=3, settings={"max_new_tokens": 12}, train={"epochs": 10.0},
                group="reward",
            )
            for name in ("grpo_leak", "quark")
        },
    }  # fmt: skip


CONFIGURATIONS: dict[str, Configuration] = {**_tier_one(), **_others()}
