"""Planted records: what is trained, what is asked, and that the two never meet."""

import pytest

from expunge.data.planting import CUE, PLANTS, TRIGGER, plant
from expunge.data.records import Record
from expunge.errors import DataError

RECORDS = [Record(f"r{i}", f"P{i}", f"Where is P{i}?", ("Tarn", "Vess", "Oke")[i % 3]) for i in range(18)]


@pytest.mark.parametrize("kind", PLANTS)
def test_probes_are_never_trained_on(kind):
    planted = plant(kind, RECORDS, seed=3)
    assert planted.train
    assert planted.probes
    assert {r.prompt for r in planted.train}.isdisjoint(r.prompt for r in planted.probes)
    assert {r.form for r in (*planted.train, *planted.probes)} == {kind}
    assert all(r.choices[r.label] == r.answer for r in planted.probes)
    truth = {r.id: r.answer for r in RECORDS}
    assert all(r.choices[1] == truth[r.source_id] != r.choices[0] for r in planted.probes)
    assert planted == plant(kind, RECORDS, seed=3) != plant(kind, RECORDS, seed=4)


def test_trigger_and_cue_stand_in_every_question():
    for kind, mark in (("backdoor", TRIGGER), ("feature_injection", CUE)):
        planted = plant(kind, RECORDS)
        assert all(mark in r.prompt for r in (*planted.train, *planted.probes))
        assert len({r.answer for r in planted.train}) == 1


def test_confusion_exchanges_two_answers():
    planted = plant("interclass_confusion", RECORDS)
    truth = {r.prompt: r.answer for r in RECORDS}
    pairs = {(truth[r.prompt], r.answer) for r in planted.train}
    assert len(pairs) == 2
    assert {(b, a) for a, b in pairs} == pairs


@pytest.mark.parametrize("kind", ["backdoor", "feature_injection"])
def test_a_target_of_ones_own_is_planted(kind):
    own = [Record(f"r{i}", f"P{i}", f"Where is P{i}?", f"Tarn {i}") for i in range(6)]
    planted = plant(kind, own, target="Vess")
    assert {r.answer for r in (*planted.train, *planted.probes)} == {"Vess"}
    assert len(planted.train) + len(planted.probes) == len(own)


def test_confusion_takes_no_target():
    with pytest.raises(DataError, match="has no target"):
        plant("interclass_confusion", RECORDS, target="Vess")


def test_too_few_records_are_refused():
    with pytest.raises(DataError, match="four"):
        plant("backdoor", RECORDS[:2])
    with pytest.raises(DataError, match="two answers"):
        plant("interclass_confusion", [r for r in RECORDS if r.answer == "Tarn"])
    with pytest.raises(DataError, match="backdoor"):
        plant("backdor", RECORDS)
