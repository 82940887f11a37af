"""Facts planted in the MLP of one known block: who claims to localize names that block."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.explain.small_facts import KNOWN, PLANTED, knowing, nll, planted

from expunge.explain.base import LOCALIZERS, Case, top_layer

CLAIMING = [card.name for card in LOCALIZERS.cards() if card.fields["localizes"]]
QUICK = {"causal_tracing": {"samples": 5}, "integrated_gradients": {"steps": 8}}


def test_the_plant_is_what_it_should_be():
    for layer in (1, 2):
        assert nll(knowing(), PLANTED) > 1.0
        assert nll(planted(layer), PLANTED) < 0.05
        assert nll(planted(layer), KNOWN) < 0.05
        pairs = zip(knowing().model.named_parameters(), planted(layer).model.parameters(), strict=True)
        changed = {name for (name, before), after in pairs if not torch.equal(before, after)}
        assert changed == {f"model.layers.{layer}.mlp.{m}_proj.weight" for m in ("gate", "up", "down")}


def test_several_localizers_claim_to_localize():
    assert CLAIMING == ["causal_tracing", "integrated_gradients", "representation_distance"]


@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("name", CLAIMING)
def test_planted_layer_is_found(name, layer):
    localizer = LOCALIZERS.make(name, **QUICK.get(name, {}))
    found = localizer.localize(planted(layer), Case(PLANTED, KNOWN[:8], knowing()))
    assert found.map.shape == (3, 4)
    assert top_layer(found) == layer
    assert found.layers[int(found.map.mean(0).argmax())] == layer
    weights = [n for n, m in found.mask.items() if m is True or np.asarray(m).any()]
    inside = [n for n in weights if n.startswith(f"model.layers.{layer}.")]
    assert len(inside) >= 0.75 * len(weights)
