"""Metrics × attacks × {original, controlled, oracle} → scorecard, recovery, verdict."""
