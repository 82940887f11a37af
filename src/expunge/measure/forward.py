"""The forward pass under the name by which training and measuring know it."""

from expunge.subjects.forward import Forward, forward

__all__ = ["Forward", "forward"]
