"""How much faster expunge is than the textbook way, measured: `python -m perf.bench`."""
