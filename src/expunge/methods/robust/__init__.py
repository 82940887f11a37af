"""Made to hold under relearning: noise and distillation, collapsed directions, adversaries."""
