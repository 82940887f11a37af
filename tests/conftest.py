"""What every test shares: one thread. Tiny models on a busy machine are ten times slower with two."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch


@pytest.fixture
def doubles(monkeypatch):
    """Views compute in fp32; golden numbers have six decimals, so here they compute in float64."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
