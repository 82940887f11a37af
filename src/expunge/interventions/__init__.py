"""What else is done to a model before or after unlearning: one intervention, one file."""

from expunge.interventions.base import INTERVENTIONS, Intervention, make_intervention

__all__ = ["INTERVENTIONS", "Intervention", "make_intervention"]
