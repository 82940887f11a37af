"""`expunge explain` on a finished run: what it writes, what it says, what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.tiny_world import SECRETS, command, inside, recipe

from expunge.data.request import Request
from expunge.runs.folder import write_json
from expunge.runs.reading import make_recipe
from expunge.subjects.subject import load_subject
from expunge.training.selections import make_selection

pytestmark = pytest.mark.slow

RUN = Path("runs/one")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A run as it is when it is finished, in which the oracle was what the method returned."""
    with inside(tmp_path_factory.mktemp("explain") / "world") as folder:
        made = make_recipe(recipe())
        write_json(RUN / "recipe.json", made.model_dump(mode="json"))
        write_json(RUN / "run.json", {"created": "", "stages": {}, "keys": {}, "life": []})
        for stage in ("unlearn", "control"):
            shutil.copytree("oracle", RUN / stage / "model")
        yield folder


OPTIONS = ["--records", "2", "--localizer", "gradient_saliency", "--localizer", "representation_distance",
           "--attribution", "gradient_dot", "--attribution", "lexical"]  # fmt: skip


@pytest.fixture(scope="module")
def said(world):
    return command("explain", RUN, *OPTIONS)


@pytest.fixture(scope="module")
def found(said):
    return json.loads((RUN / "explain" / "explain.json").read_text(encoding="utf-8"))


def test_it_names_the_page_and_its_sections(said, found):
    assert said.code == 0
    assert said.out.strip() == str(RUN / "explain" / "explain.html")
    assert "explain: residual" in said.err
    assert set(found["localizers"]) == {"gradient_saliency", "representation_distance"}
    assert set(found["attributions"]) == {"gradient_dot", "lexical"}
    sections = [found[name] for name in ("residual", "retained", "conflict")]
    assert all(
        "reason" not in one
        for one in [*sections, *found["localizers"].values(), *found["attributions"].values()]
    )


def test_residual_knowledge_of_an_oracle_is_none(found):
    values = found["residual"]["values"]["logit_lens"]
    assert set(values) == {"original", "controlled", "oracle"}
    assert set(values["original"]) == {"-1", "0", "1"}
    assert values["original"]["1"] > 0.8
    assert values["controlled"] == values["oracle"]
    assert found["residual"]["profiles"]["logit_lens"]["residual"] == 0


def test_conflict_goes_from_the_original_to_the_unlearned_model(found):
    points = found["conflict"]["points"]
    assert [point["at"] for point in points] == [0, 0.25, 0.5, 0.75, 1]
    assert points[0]["forget_norm"] < points[-1]["forget_norm"]  # a memorized set has hardly a gradient


def test_nothing_of_the_forget_set_is_told(found):
    for file in ("explain.json", "explain.html"):
        text = (RUN / "explain" / file).read_text(encoding="utf-8")
        assert not [secret for secret in SECRETS if secret in text]
        assert found["forget"][0] in text


def test_the_page_stands_alone(found):
    text = (RUN / "explain" / "explain.html").read_text(encoding="utf-8")
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "https://" not in text
    assert text.count("<svg") == 6  # three read-outs, two maps, the conflict
    assert "random masks" in text


def test_the_mask_trains_the_original_through_a_recipe(found):
    path = RUN / "explain" / found["localizers"]["gradient_saliency"]["file"]
    assert path.name == "mask.safetensors"
    made = make_recipe(recipe(selection={"name": "mask", "path": str(path)}))
    named = made.selection[0]
    original = load_subject("original", max_length=96)
    names = [name for name, _ in original.model.named_parameters()]
    mask = make_selection(named.name, **named.settings).select(original, Request({}), names, 0)
    assert (
        sum(int(m.sum()) for m in mask.values())
        == found["localizers"]["gradient_saliency"]["faithfulness"]["weights"]
    )


def test_what_is_there_is_not_computed_again(found):
    before = (RUN / "explain" / "explain.json").stat().st_mtime_ns
    again = command("explain", RUN, *OPTIONS)
    assert again.code == 0
    assert "explain: residual" not in again.err
    assert (RUN / "explain" / "explain.json").stat().st_mtime_ns == before


def test_bad_input_is_said_all_at_once(world):
    said = command("explain", RUN, "--localizer", "causal_trace", "--attribution", "nope", "--records", "0")
    assert said.code == 2
    assert "3 problems" in said.err
    assert "Did you mean causal_tracing" in said.err
    said = command("explain", "runs/none")
    assert (said.code, "is no run folder" in said.err) == (2, True)
    write_json(Path("runs/two/run.json"), {"stages": {}})
    shutil.copy(RUN / "recipe.json", "runs/two/recipe.json")
    said = command("explain", "runs/two")
    assert (said.code, "holds no controlled model yet" in said.err) == (2, True)
