"""One attack, one file."""

from expunge.attacks.base import ATTACKS, Attack, Field, Outcome, Profile

__all__ = ["ATTACKS", "Attack", "Field", "Outcome", "Profile"]
