"""`expunge bench`: methods × seeds on a benchmark, each held to every τ, one process a cell."""
