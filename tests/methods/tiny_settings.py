"""What each method is given in the behavior tests on the tiny trained model, where the defaults do not fit it.

Published constants are made for billions of parameters; these are made for two layers of width 32.
"""

from dataclasses import dataclass, field


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
    "retrain": Tiny(steps=100, lr=1e-2),
    "rmu": Tiny({"layer": 1, "retain_weight": 10.0}, lr=1e-2),
    "adaptive_rmu": Tiny({"layer": 1, "retain_weight": 10.0}, lr=1e-2),
    "undo": Tiny({"epochs": 150.0, "lr": 5e-3, "alpha": 0.4}),
}
