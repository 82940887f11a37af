"""How a certificate reaches the verdict: only where it is exact, replayed, and of the weights that ship."""

import pytest

from expunge.audit.facts import certified, not_certified

CERTIFICATE = {"exact": True, "reason": "random weights", "verified": True, "fingerprint": "ab"}


def known(ships="ab", **changes):
    return {"unlearned": {"certificate": {**CERTIFICATE, **changes}}, "controlled": {"fingerprint": ships}}


def test_a_certificate_of_the_model_that_ships_counts():
    assert certified(known()) == "verified"
    assert not_certified(known()) is None


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        (known(ships="cd"), "other weights than the certified"),
        (known(ships=None, fingerprint=None), "other weights than the certified"),
        (known(exact=False, reason="the base saw it"), "the base saw it"),
        ({**known(), "unlearned": {"certificate": {"epsilon": 1.0}}}, "promises less than exactness"),
        (known(verified=False), "not checked by replay"),
        (known(verified=False, differing=["shard 0, slice 1"]), "a replay gave other weights"),
        ({"controlled": {"fingerprint": "ab"}}, "there is none"),
        ({"unlearned": {"certificate": None}, "controlled": {"fingerprint": "ab"}}, "there is none"),
    ],
)
def test_anything_less_does_not(facts, why):
    assert certified(facts) is None
    assert why in not_certified(facts)
