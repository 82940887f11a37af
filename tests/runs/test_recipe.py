"""Recipes: every way to write one, and every problem named with its line and the nearest known name."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.errors import ConfigError
from expunge.runs.api import as_recipe
from expunge.runs.reading import load_recipe, make_recipe
from expunge.runs.recipe import Recipe
from expunge.runs.yamlfile import parse_value, set_path

BASE = {"model": "my-model", "forget": "person.jsonl"}


def problems(
    data: dict | None = None, *overrides: str, text: str | None = None, folder: Path | None = None
) -> list[str]:
    """What is wrong with a mapping, or with a file of this text."""
    if text is not None:
        assert folder is not None
        (folder / "r.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_recipe(folder / "r.yaml", overrides) if text is not None else make_recipe(
            BASE | (data or {}), overrides
        )
    return [str(problem) for problem in caught.value.problems]


# Forms ------------------------------------------------------------------------------------------------


def test_the_recipe_of_the_design_page_is_valid(tmp_path):
    text = """
model: ./my-model
forget: person.jsonl
retain: keep.jsonl
holdout: unseen.jsonl
oracle: none
target: {kind: entity, aim: erase_influence}
method: {name: npo, adapter: lora}
bar: {metric: auto, keep: 0.95}
control: [early_stop, uwc]
audit: default
require: {forget_above_oracle: 0.10}
train: {epochs: 5, lr: 1e-4, batch: 32, seed: 0}
output: runs/person-042
"""
    file = tmp_path / "r.yaml"
    file.write_text(text, encoding="utf-8")
    recipe = load_recipe(file)
    assert (recipe.method.name, recipe.method.settings, recipe.adapter) == ("npo", {}, "lora")
    assert [c.name for c in recipe.control] == ["early_stop", "uwc"]
    assert recipe.train.lr == 1e-4
    assert recipe.require.forget_above_oracle == 0.10
    assert recipe.oracle.folder is None
    assert not recipe.oracle.retrain
    assert recipe.sources == {"forget": "person.jsonl", "retain": "keep.jsonl", "holdout": "unseen.jsonl"}


@pytest.mark.parametrize(
    ("written", "name", "settings"),
    [
        ("npo", "npo", {}),
        ({"name": "npo"}, "npo", {}),
        ({"name": "npo", "beta": 0.2}, "npo", {"beta": 0.2}),
        ({"npo": {"beta": 0.2}}, "npo", {"beta": 0.2}),
        ({"npo": None}, "npo", {}),
        ({"name": "npo", "settings": {"beta": 0.2}}, "npo", {"beta": 0.2}),
        ({"name": "npo", "settings": {"beta": 0.2}, "beta": 0.3}, "npo", {"beta": 0.3}),
    ],
)
def test_a_method_is_named_in_any_form(written, name, settings):
    method = make_recipe({**BASE, "method": written}).method
    assert (method.name, method.settings) == (name, settings)


@pytest.mark.parametrize("written", ["uwc", ["uwc"], [{"name": "uwc"}], [{"uwc": None}], {"uwc": {}}])
def test_controls_are_a_list_in_any_form(written):
    written = [written] if isinstance(written, dict) else written
    assert [c.name for c in make_recipe({**BASE, "control": written}).control] == ["uwc"]


@pytest.mark.parametrize("written", ["none", None, []])
def test_no_control_can_be_asked_for(written):
    assert make_recipe({**BASE, "control": written}).control == ()


def test_an_oracle_is_none_a_folder_or_retrained():
    assert make_recipe({**BASE, "oracle": "none"}).oracle.folder is None
    assert make_recipe({**BASE, "oracle": "never-saw"}).oracle.folder == "never-saw"
    assert make_recipe({**BASE, "oracle": "retrain"}).oracle.retrain
    both = make_recipe({**BASE, "oracle": "retrain"}, ["oracle.base=before", "oracle.train.lr=1e-3"]).oracle
    assert (both.retrain, both.base, both.train.lr) == (True, "before", 1e-3)


def test_an_audit_is_a_profile_or_a_list_that_is_none():
    profile = make_recipe({**BASE, "audit": "deep"})
    assert (profile.profile, profile.reach, profile.audit_plan) == ("deep", "deep", "deep")
    one = make_recipe({**BASE, "audit": "rtt"})
    own = make_recipe({**BASE, "audit": ["rtt", {"quantize": {}}, {"relearn": {"lrs": [1e-4]}}]})
    assert one.audit_plan == [("rtt", {})]
    assert own.audit_plan == [("rtt", {}), ("quantize", {}), ("relearn", {"lrs": [1e-4]})]
    assert (own.profile, own.reach) == ("custom", "default"), (
        "a list of one's own must not pass for a profile"
    )


def test_a_benchmark_has_a_part_behind_the_slash():
    benchmark = make_recipe({"benchmark": "personas/tiny"}).benchmark
    assert (benchmark.name, benchmark.settings) == ("personas", {"part": "tiny"})


@pytest.mark.parametrize("metric", ["auto", "extraction_strength", "perplexity", "rougeL_recall"])
def test_a_metric_with_a_better_side_carries_a_bar(metric):
    assert make_recipe({**BASE, "bar": {"metric": metric}}).bar.metric == metric


def test_axes_beside_the_method_are_axes():
    recipe = make_recipe(
        {**BASE, "method": {"name": "npo", "adapter": "lora", "lora": {"rank": 4}, "reference": "live"}}
    )
    assert (recipe.adapter, recipe.lora.rank, recipe.reference, recipe.method.settings) == (
        "lora",
        4,
        "live",
        {},
    )


# Overrides --------------------------------------------------------------------------------------------


def test_overrides_reach_every_level():
    recipe = make_recipe(
        {**BASE, "method": "npo", "control": ["early_stop", "uwc"], "train": {"lr": 1e-5}},
        ["method.beta=0.2", "train.lr=1e-4", "control.1.grid=4", "output=runs/x", "audit=quick", "seed=3"],
    )
    assert (recipe.method.name, recipe.method.settings) == ("npo", {"beta": 0.2})
    assert recipe.train.lr == 1e-4
    assert recipe.control[1].settings == {"grid": 4}
    assert (recipe.output, recipe.audit, recipe.seed) == ("runs/x", "quick", 3)


def test_overrides_leave_the_mapping_they_are_given_alone():
    data = {**BASE, "train": {"lr": 1e-5}, "control": [{"uwc": {"grid": 8}}]}
    before = copy.deepcopy(data)
    make_recipe(data, ["train.lr=1e-4", "control.0=early_stop"])
    assert data == before


def test_overrides_go_onto_a_recipe_object_too():
    recipe = make_recipe(
        {**BASE, "method": {"name": "npo", "beta": 0.5}, "oracle": "retrain", "audit": ["rtt"]}
    )
    changed = as_recipe(recipe, ["method.beta=0.2", "train.lr=1e-3"])
    assert changed.method.settings == {"beta": 0.2}
    assert changed.oracle == recipe.oracle
    assert as_recipe(changed) == changed


NUMBERS = st.floats(min_value=1e-9, max_value=1e9, allow_nan=False)
VALUES = st.one_of(
    NUMBERS, st.integers(0, 10**9), st.booleans(), st.none(), st.text("abc xyz", min_size=1).map(str.strip)
)


@given(NUMBERS)
def test_every_way_to_write_a_float_is_that_float(number):
    for written in (repr(number), f"{number:.17g}", f"{number:e}"):
        assert parse_value(written) == float(written)


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=4), VALUES)
def test_what_is_set_at_a_path_stands_there(path, value):
    data: dict = {"a": "plain", "b": {"c": 1}}
    set_path(data, ".".join(path), value)
    here = data
    for part in path:
        here = here[part]
    assert here == value
    assert {"a", "b"} <= set(data)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "seed": st.integers(0, 9),
            "max_new_tokens": st.integers(1, 99),
            "name": st.text("ab", min_size=1),
            "show_text": st.booleans(),
        },
    )
)
def test_a_recipe_survives_being_written_and_read(changes):
    recipe = make_recipe({**BASE, **changes})
    assert make_recipe(recipe.model_dump(mode="json")) == recipe
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


# Problems ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"trian": {}}, ["trian: unknown key. Did you mean train"]),
        ({"train": {"rl": 1e-4}}, ["train.rl: unknown key. Did you mean lr"]),
        ({"bar": {"kep": 0.9}}, ["bar.kep: unknown key. Did you mean keep"]),
        ({"oracle": {"foldr": "x"}}, ["oracle.foldr: unknown key. Did you mean folder"]),
        ({"require": {"recovry": 0.1}}, ["require.recovry: unknown key. Did you mean recovery"]),
        ({"train": {"lr": "fast"}}, ["train.lr: input should be a valid number", "'fast'"]),
        ({"train": {"lr": -1}}, ["train.lr: input should be greater than 0 (it is -1)"]),
        ({"train": 5}, ["train: input should be a mapping of keys to values (it is 5)"]),
        ({"train": {"epochs": []}}, ["train.epochs: input should be a valid number"]),
        ({"bar": {"keep": 2}}, ["bar.keep: input should be less than or equal to 1 (it is 2)"]),
        ({"seed": 1.5}, ["seed: input should be a valid integer"]),
        ({"seed": -1}, ["seed: input should be greater than or equal to 0"]),
        ({"dtype": "float8"}, ["dtype: input should be 'float32', 'bfloat16' or 'float16'"]),
        ({"target": {"kind": "person"}}, ["target.kind: input should be 'records'"]),
        ({"method": "nop"}, ["method: unknown method 'nop'. Did you mean npo"]),
        ({"method": 3}, ["method: input should be a mapping of keys to values (it is 3)"]),
        ({"method": {"beta": 0.1}}, ["method: has no name; write {name: …, beta: …}"]),
        ({"method": {"name": "npo", "betta": 1}}, ["no setting 'betta'. Did you mean beta"]),
        ({"method": {"name": "npo", "beta": "big"}}, ["beta is 'big'"]),
        ({"method": {"name": "npo", "retain": "cee"}}, ["method.retain: unknown retain loss 'cee'"]),
        ({"method": {"name": "npo", "adapter": "lorra"}}, ["method.adapter: input should be 'full'"]),
        ({"control": ["uwcc"]}, ["control.0: unknown control 'uwcc'. Did you mean uwc"]),
        ({"control": 3}, ["control: input should be a list (it is 3)"]),
        ({"control": [{"uwc": {"grd": 3}}]}, ["no setting 'grd'. Did you mean grid"]),
        ({"audit": "quik"}, ["unknown attack 'quik'. Did you mean quick"]),
        ({"audit": ["rt"]}, ["audit.0: unknown attack 'rt'. Did you mean rtt"]),
        ({"audit": {"foo": 1}}, ["audit: input should be 'quick'", "or input should be a list"]),
        ({"bar": {"metric": "probabilty"}}, ["bar.metric: unknown metric 'probabilty'"]),
        ({"device": "banana"}, ["device: 'banana' cannot be used here"]),
        ({"bar": {"metric": "mia_loss"}}, ["bar.metric: mia_loss is neither higher nor lower"]),
        ({"columns": {"prompt": 3}}, ["columns.prompt: input should be a valid string"]),
        ({"lora": {"rank": 0}}, ["lora.rank: input should be greater than 0"]),
        ({"model": None}, ["model: is missing. Give a folder or hub id"]),
        ({"forget": ""}, ["forget: is missing. Give a file"]),
        ({"benchmark": "personaz", "model": None, "forget": None}, ["Did you mean personas"]),
        ({"benchmark": "personas/tiny", "forget": None}, ["model: stands beside a benchmark"]),
    ],
)  # fmt: skip
def test_a_problem_says_where_what_and_the_nearest_name(changes, said):
    (found,) = problems(changes)
    for piece in said:
        assert piece in found


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("lr", "lr: is not an override. Write key=value"),
        ("=3", "=3: is not an override"),
        ("train.=3", "train.=3: is not an override"),
        ("control.5.grid=3", "is no place in a list of 1"),
        ("method.beta=0.1", "method: has no name"),
    ],
)
def test_a_bad_override_is_named(override, said):
    (found,) = problems({"control": ["uwc"]}, override)
    assert said in found


def test_all_problems_come_at_once():
    found = problems(
        {
            "trian": 1,
            "seed": -1,
            "train": {"rl": 1},
            "method": "nop",
            "control": ["uwcc"],
            "bar": {"metric": "probabilty"},
        },
        "lr",
    )
    for key in ("trian", "seed", "train.rl", "method", "control.0", "bar.metric", "lr"):
        assert sum(line.startswith(f"{key}:") for line in found) == 1, (key, found)


def test_a_problem_in_a_file_has_its_line(tmp_path):
    text = "model: m\nforget: f\ntrain:\n  epochs: 3\n  rl: 1e-4\ncontrol:\n  - uwc\n  - uwcc\n"
    text += "method:\n  name: npo\n  betta: 1\n"
    found = problems(text=text, folder=tmp_path)
    file = tmp_path / "r.yaml"
    assert any(line.startswith(f"{file}:5 train.rl: unknown key") for line in found)
    assert any(line.startswith(f"{file}:8 control.1: unknown control") for line in found)
    assert any(line.startswith(f"{file}:9 method: ") for line in found)


def test_a_problem_on_the_command_line_has_no_line_of_the_file(tmp_path):
    (found,) = problems(None, "seed=-1", text="model: m\nforget: f\nseed: 0\n", folder=tmp_path)
    assert found.startswith("seed: ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: m\nforget: f\nmodel: n\n", ":3 model: stands there twice"),
        ("train:\n  lr: 1\n  lr: 2\n", ":3 train.lr: stands there twice"),
        ("model: [unclosed\n", "is not valid YAML"),
        ("model: m\n\tforget: f\n", ":2: is not valid YAML"),
        ("- a\n- b\n", "is not a mapping of keys to values"),
        ("", "is not a mapping of keys to values"),
        ("model: &x [*x]\n", "is not valid YAML"),
        ("name: 2024-99-99\n", "is not valid YAML"),
        ("model: !!python/object/apply:os.system [ls]\n", "is not valid YAML"),
        ("{[a]: b}\n", "is not valid YAML"),
    ],
)
def test_bad_yaml_is_named(tmp_path, text, said):
    (found,) = problems(text=text, folder=tmp_path)
    assert said in found


def test_a_recipe_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_recipe(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_recipe(tmp_path / "bytes.yaml")


@pytest.mark.parametrize("written", ["1e-4", "1E-4", "0.0001", "1.0e-04", "+1e-4", ".0001"])
def test_a_small_number_is_a_number_however_written(tmp_path, written):
    file = tmp_path / "r.yaml"
    file.write_text(f"model: m\nforget: f\ntrain: {{lr: {written}}}\n", encoding="utf-8")
    assert load_recipe(file).train.lr == 1e-4
