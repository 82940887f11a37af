"""The golden fixture: five answer positions over four tokens, two rows of two and three tokens, float64.

A test module that uses it says `pytestmark = pytest.mark.usefixtures("doubles")`: views compute in fp32, and
the golden numbers have six decimals.
"""

import pytest
import torch
from torch import tensor

from expunge.training.views import FrozenView, View, sum_rows

Z = [[2, 0, -1, 0.5], [0, 3, 1, -1], [1, 1, 0, 0], [-1, 0, 2, 1], [0.5, -0.5, 0, 1.5]]
Z_REF = [[3, 0, -1, 0], [0, 4, 0, -1], [2, 1, 0, 0], [-1, 0, 3, 0], [0, -1, 0, 3]]
GOLD, REFUSAL = tensor([0, 1, 0, 2, 3]), tensor([3, 3, 3, 3, 0])
ROW, LENGTHS = tensor([0, 0, 1, 1, 1]), tensor([2, 3])
H, H_REF = [[1, 2, 2], [0, 3, 4]], [[1, 2, 0], [0, 3, 4]]


def floats(values):
    return torch.tensor(values, dtype=torch.float64)


def logp_of(logits, targets):
    return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]


EVERY = frozenset({"logits", "token_logprobs", "sum_nll", "mean_nll", "hidden"})


def frozen(logits, targets, row, lengths, hidden=None, model="reference"):
    """The view of a reference or teacher with these logits and states (at any layer)."""

    def fetch(quantity, layer=None):
        if quantity == "hidden":
            return hidden
        logp = logp_of(logits, targets)
        sums = -sum_rows(logp, row, len(lengths))
        return {"logits": logits, "token_logprobs": logp, "sum_nll": sums}[quantity]

    return FrozenView(fetch, row, lengths, EVERY, f"forget.{model}")


def view(
    logits, targets=GOLD, row=ROW, lengths=LENGTHS, ref=None, hidden=None, variants=None, teacher=None, **more
):
    """The fixture's view; `hidden`: {block: states} or states after block 0."""
    ref = ref or frozen(floats(Z_REF), targets, row, lengths)
    hidden = hidden if isinstance(hidden, dict) else {} if hidden is None else {0: hidden}
    return View(targets, row, lengths, logits, hidden, ref, teacher, variants or {}, EVERY, **more)


def states(hidden, ref=None, lengths=(1, 1)):
    """A view of hidden states at one layer."""
    row = torch.repeat_interleave(torch.arange(len(lengths)), tensor(lengths))
    ref = frozen(None, None, row, tensor(lengths), None if ref is None else floats(ref))
    return view(None, torch.zeros_like(row), row, tensor(lengths), ref, hidden)


def leaf(values=Z):
    return floats(values).requires_grad_()


def loss_and_gradient(method, logits, **more):
    loss = method.loss(view(logits, **more)).mean()
    return loss.item(), torch.autograd.grad(loss, logits)[0]


def seq_mean(values):
    return (sum_rows(values, ROW, 2) / LENGTHS).mean()


def close(value, expected, tolerance=5e-7):
    assert value == pytest.approx(expected, abs=tolerance)
