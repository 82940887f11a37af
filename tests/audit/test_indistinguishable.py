"""The controlled model beside the oracle, from evidence made by hand."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "metrics"))

from made_evidence import model

from expunge.audit.indistinguishable import beside_the_oracle

MEMORIZER, ONE, OTHER = model("memorizer"), model("stranger", 1), model("stranger", 2)
ENTITIES = MEMORIZER["forget"].entity_of


def test_a_memorizer_is_told_from_the_oracle():
    found = beside_the_oracle({"controlled": MEMORIZER, "oracle": ONE}, "probability", ENTITIES)
    assert found.difference > 0.5
    assert found.p_value == found.smallest_p
    assert found.entities == 6


def test_the_oracle_beside_itself_shows_nothing():
    found = beside_the_oracle({"controlled": ONE, "oracle": ONE}, "probability", ENTITIES)
    assert (found.difference, found.p_value, found.epsilon) == (0.0, 1.0, 0.0)


def test_a_second_stranger_is_not_told_from_the_first():
    found = beside_the_oracle({"controlled": OTHER, "oracle": ONE}, "probability", ENTITIES)
    assert found.p_value > 0.05
    assert found.epsilon == 0.0
    assert found.limit >= 0


def test_without_an_oracle_there_is_nothing_to_compare():
    assert beside_the_oracle({"controlled": ONE}, "probability", ENTITIES) is None
