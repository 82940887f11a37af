"""What every test shares: one thread. Tiny models on a busy machine are ten times slower with two."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
