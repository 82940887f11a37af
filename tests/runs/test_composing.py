"""`expunge compose` on the tiny world: both orders, every model kept, resumed, and no forget text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from expunge.errors import ExpungeError
from expunge.interventions import make_intervention
from expunge.interventions.matrices import matrices
from expunge.interventions.rounding import grid_codes
from expunge.runs.chains import UNLEARN, chains, check_chains, completed, labeled, stored_bits
from expunge.runs.recipe import ComposeSettings, Named
from expunge.subjects import load_subject
from tiny_world import SECRETS, Said, command, inside, listing, rows, write_recipe, write_rows

FOLDER = Path("runs/one-compose")
COMPOSE = {
    "interventions": [{"edit_finetune": {"lr": 3e-3, "epochs": 6}}, {"rtn": {"bits": 5, "group": 16}}],
    "latency": 0,
    "relearn": False,
}


def made(*names: str, **settings: Any):
    return {name: make_intervention(name, **settings) for name in names}


# Chains ------------------------------------------------------------------------------------------------


def test_pairs_are_ordered_and_stand_beside_each_alone():
    found = chains(["rtn", "wanda"], "unlearn")
    assert found[:3] == [(UNLEARN,), ("rtn",), ("wanda",)]
    assert set(found[3:]) == {(UNLEARN, n) for n in ("rtn", "wanda")} | {
        (n, UNLEARN) for n in ("rtn", "wanda")
    }
    every = chains(["rtn", "wanda"], "all")
    assert {*every} - {*found} == {("rtn", "wanda"), ("wanda", "rtn")}


def test_longer_chains_are_made_both_ways():
    long = ("rtn", UNLEARN, "wanda")
    found = chains(["rtn", "wanda"], "unlearn", [long, (UNLEARN, "rtn")])
    assert found[-2:] == [long, long[::-1]]
    assert len(found) == len(set(found))
    told = [str(p) for p in check_chains([(UNLEARN, "rnt"), ()], ["rtn"])]
    assert "rtn" in told[0]
    assert "empty" in told[1]


def test_two_of_a_name_have_labels_of_their_own():
    four, three = Named(name="rtn"), Named(name="rtn", settings={"bits": 3})
    assert labeled([four, Named(name="wanda"), three]) == {
        "rtn": four, "wanda": Named(name="wanda"), "rtn-2": three,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("chain", "again"),
    [
        ((UNLEARN, "rtn"), ()),
        (("rtn", UNLEARN), ("rtn",)),
        (("wanda", UNLEARN), ("wanda",)),
        (("edit_lora", UNLEARN), ()),
        (("rtn", "edit_lora"), ("rtn",)),
        (("wanda", "gptq"), ()),  # a quantizer keeps zeros
        (("gptq", "wanda"), ()),  # and what is zero lies on every grid
        (("gptq", "sparsegpt"), ("gptq",)),  # it moves what it keeps
        (("rtn", "gptq"), ("rtn",)),
        (("gptq", "wanda", UNLEARN), ("wanda", "gptq")),  # rounding last: it keeps zeros
    ],
)
def test_what_a_later_step_undid_is_done_again(chain, again):
    known = made("rtn", "gptq", "wanda", "sparsegpt", "edit_lora")
    assert completed(chain, known) == chain + again


def test_bits_are_those_of_the_last_grid_that_holds():
    from tiny_models import make_subject

    model = make_subject().model
    known = made("rtn", "wanda", "sparsegpt", "awq", "edit_lora")
    rtn = known["rtn"].stored_bits(model)
    assert stored_bits(("rtn",), known, model) == rtn == stored_bits(("rtn", "wanda"), known, model)
    for later in (UNLEARN, "sparsegpt", "edit_lora"):
        assert stored_bits(("rtn", later), known, model) == {}
    assert stored_bits(("rtn", "awq"), known, model) == known["awq"].stored_bits(model)
    assert stored_bits(("rtn", UNLEARN, "rtn"), known, model) == rtn


def test_a_list_will_do_for_a_section():
    assert ComposeSettings.model_validate(["rtn"]).interventions == (Named(name="rtn"),)
    families = {make_intervention(n.name).family for n in ComposeSettings().interventions}
    assert families == {"edit", "quantize", "prune"}


# A whole composition -----------------------------------------------------------------------------------


def write_world(**changes: Any) -> Path:
    """A recipe, and a forget file with a paraphrase of each question."""
    more = [{"paraphrased_questions": [r["question"].replace("?", " today?")]} for r in rows("forget")]
    write_rows(Path("forget.jsonl"), [r | extra for r, extra in zip(rows("forget"), more, strict=True)])
    train = {"epochs": 3, "lr": 3e-3, "batch": 6, "warmup": 0.0}
    bar = {"metric": "probability", "keep": 0.6}
    control = [{"uwc": {"grid": 2, "tol": 0.1}}]
    own = {"compose": COMPOSE, "bar": bar, "train": train, "control": control}
    return write_recipe(Path("r.yaml"), **{**own, **changes})


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Said]:
    """A finished composition."""
    with inside(tmp_path_factory.mktemp("world")):
        yield command("compose", write_world())


@pytest.fixture(scope="module")
def data(said) -> dict[str, Any]:
    assert said.code == 0, said.err
    return json.loads((FOLDER / "composition.json").read_text(encoding="utf-8"))


def model_of(data: dict[str, Any], *asked: str) -> dict[str, Any]:
    return next(m for m in data["models"] if m["asked"] == list(asked))


def load(name: str) -> Any:
    return load_subject(FOLDER / ("control" if name == UNLEARN else f"models/{name}") / "model", device="cpu")


@pytest.mark.slow
def test_both_orders_of_every_pair_are_measured(data):
    asked = [tuple(m["asked"]) for m in data["models"]]
    alone = [(), (UNLEARN,), ("edit_finetune",), ("rtn",)]
    pairs = [(UNLEARN, "edit_finetune"), (UNLEARN, "rtn"), ("edit_finetune", UNLEARN), ("rtn", UNLEARN)]
    assert asked == alone + pairs
    assert {m["status"] for m in data["models"]} == {"ok"}
    for row in data["orders"]:
        i, j, key = row["first"], row["second"], row["measure"]
        one, other = (model_of(data, *pair)["scores"][key]["value"] for pair in ((i, j), (j, i)))
        better = next(m["better"] for m in data["measures"] if m["key"] == key)
        best = 1 - max(one, other) if better == "higher" else min(one, other)
        assert row["order_free_error"] == pytest.approx(best)
        assert row["order_sensitivity"] == pytest.approx(abs(one - other))
    assert {(r["first"], r["second"]) for r in data["orders"]} == {
        (UNLEARN, "edit_finetune"),
        (UNLEARN, "rtn"),
    }


@pytest.mark.slow
def test_final_model_is_compressed_in_both_orders(data):
    for order, name in (((UNLEARN, "rtn"), "unlearn.rtn"), (("rtn", UNLEARN), "rtn.unlearn.rtn")):
        found = model_of(data, *order)
        assert found["name"] == name
        assert found["sizes"]["average_bits"]["compressed"] == 5 + 16 / 16
        for _, weight in matrices(load(name).model):
            code, scale = grid_codes(weight, 5, "group", 16)
            torch.testing.assert_close(weight.double(), code * scale, atol=1e-7, rtol=1e-6)
    loose = load("rtn.unlearn").model
    codes = [(w.double() / grid_codes(w, 5, "group", 16)[1]) for _, w in matrices(loose)]
    assert any((c - c.round()).abs().max() > 0.01 for c in codes), "unlearning leaves the grid"


@pytest.mark.slow
def test_an_edit_and_unlearning_are_compared_on_the_same_facts(data):
    assert [row["model"] for row in data["same_facts"]] == ["original", UNLEARN, "edit_finetune"]
    before, edited = model_of(data)["scores"], model_of(data, "edit_finetune")["scores"]
    assert before["efficacy"]["value"] == 0
    assert edited["efficacy"]["value"] > 0.5
    assert before["locality"]["value"] == 1
    assert edited["locality"]["value"] < 1
    assert edited["generalization"]["n"] == before["forget"]["n"] == 6


@pytest.mark.slow
def test_every_model_on_the_way_is_kept(data):
    stages = json.loads((FOLDER / "run.json").read_text(encoding="utf-8"))["stages"]
    kept = {name for name in stages if (FOLDER / name / "model" / "model.safetensors").is_file()}
    pairs = (
        "unlearn.rtn",
        "unlearn.edit_finetune",
        "rtn.unlearn",
        "rtn.unlearn.rtn",
        "edit_finetune.unlearn",
    )
    assert kept >= {"unlearn", "control", "models/rtn", *(f"models/{name}" for name in pairs)}


@pytest.mark.slow
def test_the_page_holds_every_matrix_and_no_forget_text(said, data):
    page = (FOLDER / "composition.html").read_text(encoding="utf-8")
    told = said.out + said.err + page + (FOLDER / "composition.json").read_text(encoding="utf-8")
    assert [secret for secret in SECRETS if secret in told] == []
    for measure in data["measures"]:
        assert measure["title"] in page
    assert page.count("first ↓ then →") == len(data["measures"]) + 5
    assert "rtn → unlearn → rtn" in page
    value = model_of(data, "rtn", UNLEARN)["scores"]["forget"]["value"]
    grid = page[page.index(">extraction strength on forget", page.index('id="matrices"')) :]
    row = re.search(r'<th scope="row">rtn</th>(.*?)</tr>', grid, re.S)
    assert row is not None
    assert re.findall(r'<td class="num">([^<]*)', row[1])[0] == f"{value:.3f}", "rows first, columns second"


@pytest.mark.slow
def test_a_killed_composition_goes_on_and_a_longer_one_repeats_nothing(said, data, monkeypatch):
    import expunge.runs.composing as file

    before = listing(Path("runs/.cache"))
    stages = json.loads((FOLDER / "run.json").read_text(encoding="utf-8"))["stages"]
    longer = {**COMPOSE, "interventions": [*COMPOSE["interventions"], {"magnitude": {"sparsity": 0.2}}]}
    real, seen = file.save_subject, []

    def dies(subject, folder, **more):
        seen.append(folder.parent.name)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return real(subject, folder, **more)

    monkeypatch.setattr(file, "save_subject", dies)
    assert command("compose", write_world(compose=longer)).code != 0
    assert len(seen) == 2
    monkeypatch.setattr(file, "save_subject", real)
    longer["chains"] = [["rtn", UNLEARN, "edit_finetune"]]
    again = command("compose", write_world(compose=longer), "--json")
    assert again.code == 0, again.err
    after = listing(Path("runs/.cache"))
    made = {name: time for name, time in before.items() if ".lock" not in name and time}
    assert {name: after[name] for name in made} == made, "nothing finished was computed again"
    now = json.loads((FOLDER / "run.json").read_text(encoding="utf-8"))["stages"]
    assert all(now[name]["key"] == stages[name]["key"] for name in stages)
    longer_data = json.loads(again.out)
    assert [m["status"] for m in longer_data["models"]] == ["ok"] * 13
    chain = model_of(longer_data, "edit_finetune", UNLEARN, "rtn")
    assert chain["name"] == "edit_finetune.unlearn.rtn"
    assert "edit_finetune → unlearn → rtn" in (FOLDER / "composition.html").read_text(encoding="utf-8")
    assert model_of(longer_data, "rtn", UNLEARN)["scores"] == model_of(data, "rtn", UNLEARN)["scores"]
    zeros = [model_of(longer_data, *pair)["sizes"]["sparsity"]["compressed"] for pair in
             ((UNLEARN, "magnitude"), ("magnitude", UNLEARN))]  # fmt: skip
    assert all(z >= 0.199 for z in zeros)


@pytest.mark.slow
def test_a_failed_step_takes_its_chains_and_no_others(said, monkeypatch):
    from expunge.interventions.magnitude import Magnitude

    def fails(self, work, request, seed):
        raise ExpungeError("out of luck")

    monkeypatch.setattr(Magnitude, "change", fails)
    broken = {**COMPOSE, "interventions": [*COMPOSE["interventions"], {"magnitude": {"sparsity": 0.3}}]}
    done = command("compose", write_world(compose=broken))
    assert done.code == 0, done.err
    found = json.loads((FOLDER / "composition.json").read_text(encoding="utf-8"))
    failed = [m["asked"] for m in found["models"] if m["status"] == "failed"]
    assert failed == [["magnitude"], [UNLEARN, "magnitude"], ["magnitude", UNLEARN]]
    assert "out of luck" in (FOLDER / "composition.html").read_text(encoding="utf-8")
    assert "failed: magnitude" in done.out
    reasons = {r["reason"] for r in found["orders"] if r["second"] == "magnitude"}
    assert reasons
    assert all("not_measured" in reason for reason in reasons)


@pytest.mark.slow
def test_it_is_shown_again_and_purged(said):
    """A compressed original still knows the forget set, and evidence holds its answers: both must go."""
    shown = command("show", FOLDER)
    assert shown.code == 0, shown.err
    assert "rtn → unlearn" in shown.out
    assert "a composition" in command("list", "runs").out
    assert any("measure-rtn" in name for name in listing(Path("runs/.cache")))
    assert command("purge", FOLDER, "--yes").code == 0
    files = [name for name, time in listing(Path("runs")).items() if time]
    assert [name for name in files if re.search(r"measure|models|attack", name)] == []
    assert (FOLDER / "composition.html").is_file()


@pytest.mark.slow
def test_bad_input_is_told_at_once(said):
    wrong = command("compose", write_world(), "--interventions", "gtpq,wannda")
    assert wrong.code == 2
    assert "gptq" in wrong.err
    assert "wanda" in wrong.err
    refused = write_world(compose=[{"edit_lora": {"target": "alternate"}}, "edit_finetune"], access="logits")
    wrong = command("compose", refused)
    assert wrong.code == 2
    assert "access" in wrong.err
    assert "one target" in wrong.err
