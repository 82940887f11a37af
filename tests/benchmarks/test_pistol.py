import json
import shutil
from collections import Counter

import pytest
from published import DATA, benchmark, counts, needs, row

from expunge.benchmarks.pistol import EDGES, Pistol, _companies
from expunge.errors import DataError

pytestmark = needs("pistol")


def pistol(part: str = "sample1", **options) -> Pistol:
    return benchmark("pistol", part, **options)


@pytest.mark.parametrize(("part", "edge", "near"), [("sample1", "A_B", 260), ("sample2", "0_1", 20)])
def test_counts_are_those_of_the_files(part, edge, near):
    found = counts(pistol(part).request())
    assert (found["forget"], found["neighbors"], found["utility"]) == (20, near, 169)
    assert sum(found.values()) == 20 * EDGES[part] + 169
    assert {r.entity for r in pistol(part).request().forget} == {edge}


@pytest.mark.parametrize("part", EDGES)
def test_first_record_is_the_files_first_row(part):
    told, first = row("pistol", f"pistol_{part}"), pistol(part).request().forget[0]
    assert (first.prompt, first.answer, first.entity) == (told["question"], told["answer"], told["edge"])


def test_only_neighbors_share_a_company_with_what_is_to_go():
    request = pistol("sample2", edge="14_16").request()
    gone = _companies(request.forget)
    assert {r.entity for r in request["neighbors"]} == {"13_14", "14_15", "15_16", "16_17", "12_16", "13_16"}
    for split in ("retain", "calibration", "report"):
        for edge in {r.entity for r in request[split]}:
            assert not gone & _companies([r for r in request[split] if r.entity == edge])


def test_neighbors_may_be_retained_as_in_the_paper():
    request = pistol("sample1", retain_neighbors=True).request()
    assert "neighbors" not in request
    kept = Counter(r.entity for split in ("retain", "calibration", "report") for r in request[split])
    assert len(kept) == 19
    assert set(kept.values()) == {20}


def test_an_unknown_edge_is_answered_with_the_nearest():
    with pytest.raises(DataError, match=r"benchmark\.edge: 'A_B2' is unknown"):
        Pistol.from_part("sample1", folder=str(DATA / "pistol"), edge="A_B2").request()


def test_a_contract_with_too_few_questions_is_an_error(tmp_path):
    for path in (DATA / "pistol").glob("*.jsonl"):
        shutil.copyfile(path, tmp_path / path.name)
    path = tmp_path / "pistol_sample1.jsonl"
    lines = path.read_text("utf-8").splitlines()
    moved = {**json.loads(lines[0]), "edge": "A_C"}
    path.write_text("\n".join([json.dumps(moved), *lines[1:]]), "utf-8")
    with pytest.raises(DataError) as caught:
        Pistol.from_part("sample1", folder=str(tmp_path)).request()
    assert [p.what for p in caught.value.problems] == [
        "edge A_C has 21 questions about 3 companies",
        "edge A_B has 19 questions about 2 companies",
    ]


def test_the_hub_has_contracts_but_no_general_facts(monkeypatch):
    monkeypatch.delenv("EXPUNGE_PISTOL", raising=False)
    (file,) = Pistol.from_part("sample2").files().values()
    assert (file.rows, file.hub) == (1500, "xinchiqiu/PISTOL:pistol_data_2:train")
