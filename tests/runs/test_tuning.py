"""What a search is made of: records set apart, the space, the next point, the ranking."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from expunge.controls import CONTROLS, make_control
from expunge.data.near import normalized
from expunge.data.records import Record
from expunge.data.request import Request
from expunge.errors import ConfigError
from expunge.methods import METHODS, make_method
from expunge.runs.apart import set_apart
from expunge.runs.ranking import Finalist, Trial, choose, front, rank, sensitivity
from expunge.runs.reading import make_recipe
from expunge.runs.recipe import Named
from expunge.runs.tuning_space import Axis, Point, apply, check_space, space_of, suggest
from expunge.training.settings import TrainSettings


def person(i: int, *paraphrases: str, entity: str | None = None) -> Record:
    name = entity or f"P{i}"
    return Record(
        f"r{i}", name, f"Where is {name} from, {i}?", f"From T{i}.", paraphrased_prompts=paraphrases
    )


def hard(source: str, prompt: str, form: str = "paraphrase") -> Record:
    return Record(f"{source}-{prompt}", "", prompt, "x", source_id=source, form=form)


def request(forget: list[Record], forget_hard: tuple[Record, ...] = ()) -> Request:
    return Request({"forget": tuple(forget), "forget_hard": forget_hard, "retain": (person(99),)})


def prompts(records) -> set[tuple[str, str]]:
    """(source, prompt) of rows, and of the paraphrases of records."""
    found = {(r.source_id or r.id, normalized(r.prompt)) for r in records}
    return found | {(r.id, normalized(p)) for r in records for p in r.paraphrased_prompts}


# Set apart --------------------------------------------------------------------------------------------


def test_one_paraphrase_of_each_record_is_set_apart_and_no_report_has_it():
    forget = [person(i, f"Say, whence comes P{i}?", f"Home of P{i}?") for i in range(6)]
    again = (hard(f"r{i}", f"Home of P{i}?") for i in range(6))
    rows = (*again, hard("r0", "T0 is whose home?", "reverse"))
    apart = set_apart(request(forget, rows))
    assert sorted(r.source_id for r in apart.selection) == [f"r{i}" for i in range(6)]
    left = prompts([*apart.request.forget, *apart.request["forget_hard"]])
    assert not left & prompts(apart.selection)
    assert left | prompts(apart.selection) == prompts([*forget, *rows])
    assert {len(r.paraphrased_prompts) for r in apart.request.forget} == {1}
    assert "reverse" in {r.form for r in apart.request["forget_hard"]}
    assert all(r.answer in ("x", f"From T{str(r.source_id)[1:]}.") for r in apart.selection)
    assert apart.clean
    assert "expunge tune" in apart.request.built["forget_hard"]


def test_a_single_paraphrase_each_is_split_by_entity():
    forget = [person(i, f"Whence is {i}?", entity=f"E{i // 2}") for i in range(8)]
    apart = set_apart(request(forget))
    chosen = {r.entity for r in apart.selection}
    left = {r.entity for r in apart.request.forget if r.paraphrased_prompts}
    assert len(chosen) == 2
    assert chosen | left == {"E0", "E1", "E2", "E3"}
    assert not chosen & left


def test_one_entity_is_split_by_record():
    apart = set_apart(request([person(i, f"Whence is {i}?", entity="E") for i in range(4)]))
    assert len(apart.selection) == 2
    assert sum(bool(r.paraphrased_prompts) for r in apart.request.forget) == 2


def test_other_forms_serve_where_nothing_is_paraphrased():
    forget = [person(i) for i in range(4)]
    rows = tuple(hard(f"r{i}", f"T{i} is whose home?", "reverse") for i in range(4))
    apart = set_apart(request(forget, rows))
    assert len(apart.selection) == len(apart.request["forget_hard"]) == 2


def test_where_nothing_can_be_spared_it_says_so():
    for only in (request([person(0), person(1)]), request([person(0, "Whence?")])):
        apart = set_apart(only)
        assert not apart.clean
        assert apart.selection == only.forget
        assert apart.request == only


def test_what_is_set_apart_depends_on_the_records_alone():
    forget = [person(i, f"Say, whence comes P{i}?", f"Home of P{i}?") for i in range(9)]
    shuffled = random.Random(3).sample(forget, len(forget))
    ids = [{r.id for r in set_apart(request(some)).selection} for some in (forget, shuffled)]
    assert ids[0] == ids[1]
    assert len({i[-1] for i in ids[0]}) == 2, "neither always the first paraphrase nor always the second"


# The space --------------------------------------------------------------------------------------------


def space(
    method: str = "npo", settings: dict | None = None, train: dict | None = None, **more
) -> dict[str, Axis]:
    recipe = make_recipe({"model": "m", "forget": "f", "tune": {"space": more.pop("space", {})}, **more})
    named = Named(name=method, settings=settings or {})
    train = {"lr": 1e-4, "epochs": 6, "batch": 8, **(train or {})}
    return {axis.key: axis for axis in space_of(recipe, named, TrainSettings(**train))}


def bounds(axis: Axis) -> tuple[float, float]:
    return pytest.approx(axis.low), pytest.approx(axis.high)


def test_a_space_lies_around_what_the_recipe_says():
    axes = space()
    assert set(axes) == {"train.lr", "train.epochs", "train.batch", "npo.beta", "npo.retain_weight"}
    assert bounds(axes["train.lr"]) == (1e-5, 1e-3)
    assert bounds(axes["train.epochs"]) == (3, 12)
    assert bounds(axes["train.batch"]) == (2, 8), "never more memory than the recipe takes"
    assert bounds(axes["npo.beta"]) == (0.025, 0.4)
    assert bounds(space(settings={"beta": 1.0})["npo.beta"]) == (0.25, 4.0)
    assert bounds(space(train={"steps": 10})["train.steps"]) == (5, 20)
    assert all(axis.log for axis in axes.values())


def test_what_has_no_effect_is_not_searched():
    assert "ga.retain_weight" not in space("ga"), "it has no retain term"
    assert "graddiff.forget_weight" not in space("graddiff"), "only its ratio to the retain weight counts"
    assert "train.lr" not in space("icul"), "nothing is trained"
    assert "train.lr" in space("task_vector")
    assert set(space("certified")) == set(), "ε and δ are what was promised"


def test_bounds_of_annotations_hold():
    axes = space("tarf")
    assert all(0 < axis.low < axis.high <= 1 for key, axis in axes.items() if key in ("tarf.identify",))
    assert bounds(space("undo")["undo.alpha"]) == (0.15, 1.0)
    guard = space("guardrail")["guardrail.threshold"]
    assert 0.9 < guard.high < 1, "an open bound is approached, not reached"
    assert "undo.tolerance" not in space("undo"), "Search() leaves it alone"


def test_controls_during_training_are_searched_those_after_it_not():
    axes = space(control=["cap", {"name": "select", "q": 0.9}, "uwc"])
    assert bounds(axes["cap.p_min"]) == (0.0025, 0.04)
    assert bounds(axes["select.q"]) == (0.3, 1.0)
    assert axes["select.q"].center == 0.9
    assert not any(key.startswith("uwc") for key in axes)


@pytest.mark.parametrize("registry", [METHODS, CONTROLS], ids=["methods", "controls"])
def test_both_ends_of_every_range_are_settings_of_the_thing(registry):
    make = make_method if registry is METHODS else make_control
    for name in registry.names():
        for key, axis in space(name).items() if registry is METHODS else space(control=[name]).items():
            owner, _, field = key.partition(".")
            for value in (axis.low, axis.high) if owner == name else ():
                assert getattr(make(name, **{field: value}), field) == value
                assert axis.low <= axis.center <= axis.high


def test_a_recipe_says_its_own_ranges():
    said = {
        "train.lr": [1e-6, 1e-2], "npo.beta": 0.3, "train.batch": {"values": [4, 16]}, "rmu.layer": [1, 3],
    }  # fmt: skip
    axes = space(space=said)
    assert bounds(axes["train.lr"]) == (1e-6, 1e-2)
    assert axes["npo.beta"].values == (0.3,)
    assert not axes["npo.beta"].varies
    assert (axes["train.batch"].values, axes["train.batch"].center) == ((4, 16), 4)
    assert "rmu.layer" not in axes, "that is another method's"
    layer = space("rmu", space=said)["rmu.layer"]
    assert (layer.low, layer.high, layer.whole) == (1, 3, True)


@pytest.mark.parametrize("value", [[1, 0], [1, 2, 3], {"low": 1}, {"values": []}, ["a", "b"], [True, False]])
def test_what_is_no_range_is_refused(value):
    with pytest.raises(ConfigError, match=r"tune\.space\.train\.lr"):
        space(space={"train.lr": value})


def test_names_of_a_space_are_checked():
    recipe = make_recipe(
        {
            "model": "m",
            "forget": "f",
            "tune": {"space": {"train.lx": 1, "nop.beta": 1, "npo.beta": [0.1, 1], "uwc": 1}},
        }
    )
    wrong = {problem.where for problem in check_space(recipe)}
    assert wrong == {"tune.space.train.lx", "tune.space.nop.beta", "tune.space.uwc"}


def test_parameters_become_a_recipe():
    recipe = make_recipe(
        {"model": "m", "forget": "f", "control": ["cap", "uwc"], "train": {"warmup": 0.0}, "tune": {}}
    )
    made = apply(
        recipe,
        Named(name="npo", settings={"retain": "kl"}),
        {"train.lr": 1e-3, "npo.beta": 0.5, "cap.p_min": 0.02},
    )
    assert made.method == Named(name="npo", settings={"retain": "kl", "beta": 0.5})
    assert made.control == (Named(name="cap", settings={"p_min": 0.02}), Named(name="uwc"))
    assert (made.train.lr, made.train.warmup) == (1e-3, 0.0)
    assert made.train.model_fields_set == {"lr", "warmup"}, (
        "a benchmark's defaults still stand under the rest"
    )


# The next point ---------------------------------------------------------------------------------------

AXES = (
    Axis("train.lr", 1e-4, 1e-6, 1e-2),
    Axis("train.batch", 8, 2, 8, whole=True),
    Axis("m.to", "a", values=("a", "b")),
)


def history(count: int, seed: int) -> list[Point]:
    made: list[Point] = []
    for _ in range(count):
        params = suggest(AXES, made, seed)
        made.append(Point(params, None if len(made) == 4 else abs(params["train.lr"] - 1e-3)))
    return made


def test_the_first_trial_is_the_recipe_as_it_stands():
    assert suggest(AXES, [], 0) == {"train.lr": 1e-4, "train.batch": 8, "m.to": "a"}


def test_a_point_follows_from_the_trials_before_it_and_the_seed_alone():
    made = history(16, seed=1)
    again = history(16, seed=1)
    assert made == again
    assert suggest(AXES, made[:12], 1) == made[12].params, "as after a kill"
    assert history(3, seed=2) != made[:3]
    assert len({p.params["train.lr"] for p in made}) > 10


def test_nothing_is_tried_twice():
    axes = (Axis("m.to", "a", values=("a", "b", "c")),)
    made: list[Point] = []
    while (params := suggest(axes, made, 0)) is not None:
        made.append(Point(params, 1.0))
    assert sorted(p.params["m.to"] for p in made) == ["a", "b", "c"]
    assert suggest((), [], 0) == {}
    assert suggest((), [Point({}, 1.0)], 0) is None


def test_points_stay_inside_and_the_search_learns():
    made = history(40, seed=5)
    assert all(1e-6 <= p.params["train.lr"] <= 1e-2 and 2 <= p.params["train.batch"] <= 8 for p in made)
    early, late = (
        sorted(p.value for p in part if p.value is not None)[len(part) // 2]
        for part in (made[:10], made[20:])
    )
    assert late < early


# The ranking ------------------------------------------------------------------------------------------


def trial(number: int, score: float | None, status: str = "ok", **more) -> Trial:
    made = Trial(f"npo-{number:03d}", "npo", number, 0, {"train.lr": 10.0**-number}, status, score)
    return replace(made, **{"utility": 0.9, "seconds": 1.0, "alpha": 0.5, **more})


def test_search_ranks_by_calibrated_score():
    """An uncontrolled wreck never wins: what it forgot at α = 1 counts for nothing."""
    wreck = trial(0, 0.55, forget_uncontrolled=0.0, alpha=0.01)
    gentle = trial(1, 0.30, forget_uncontrolled=0.25, alpha=0.9)
    assert rank([wreck, gentle], "lower") == [gentle, wreck]
    assert rank([wreck, gentle], "higher") == [wreck, gentle]


def test_degenerate_trials_are_kept_and_come_last():
    trials = [
        trial(0, 0.6, "no_effect"), trial(1, None, "diverged"), trial(2, 0.59),
        trial(3, 0.1, "did_not_survive"),
    ]  # fmt: skip
    assert [t.number for t in rank(trials, "lower")] == [2, 3, 0, 1]


def test_the_winner_has_the_best_mean_over_seeds_it_was_not_chosen_by():
    lucky = Finalist(trial(0, 0.0), (trial(0, 0.4), trial(0, 0.5)))
    steady = Finalist(trial(1, 0.2), (trial(1, 0.2), trial(1, 0.3)))
    winner, ties = choose([lucky, steady], "lower")
    assert winner is steady
    assert winner.mean == pytest.approx(0.25)
    assert ties == []


def test_a_winner_inside_anothers_interval_is_a_tie():
    first = Finalist(trial(0, 0.2), (trial(0, 0.20), trial(0, 0.22)))
    wide = Finalist(trial(1, 0.2), (trial(1, 0.3, low=0.1, high=0.5), trial(1, 0.32, low=0.2, high=0.5)))
    apart = Finalist(trial(2, 0.2), (trial(2, 0.3, low=0.28, high=0.5), trial(2, 0.3, low=0.28, high=0.5)))
    assert choose([first, wide, apart], "lower") == (first, [wide])
    assert wide.interval == (pytest.approx(0.15), 0.5)


def test_a_finalist_that_diverges_with_a_seed_does_not_win():
    shaky = Finalist(trial(0, 0.0), (trial(0, 0.0), trial(0, None, "diverged")))
    sound = Finalist(trial(1, 0.2), (trial(1, 0.2), trial(1, 0.3)))
    assert choose([shaky, sound], "lower")[0] is sound
    assert choose([], "lower") == (None, [])


def test_the_front_holds_what_no_trial_beats_in_both():
    trials = [
        trial(0, 0.1, utility=0.7), trial(1, 0.3, utility=0.9), trial(2, 0.3, utility=0.8, seconds=0.1),
        trial(3, 0.0, "did_not_survive"), trial(4, 0.5, utility=0.95), trial(5, 0.6, utility=0.95),
    ]  # fmt: skip
    plain = [p["name"] for p in front(trials, {}, "lower", "higher")]
    assert plain == ["npo-000", "npo-001", "npo-004"]
    assert [p["name"] for p in front(trials, {}, "lower", "higher", cost=True)] == sorted([*plain, "npo-002"])
    assert [p["name"] for p in front(trials, {}, "lower", "lower")] == ["npo-000"]


def test_the_front_takes_finalists_with_their_means_over_seeds():
    trials = [trial(0, 0.1), trial(1, 0.3)]
    unlucky = Finalist(trials[0], (trial(0, 0.4), trial(0, 0.6)))
    points = front(trials, {"npo-000": unlucky}, "lower", "higher")
    assert [(p["name"], p["forget"], p["seeds"]) for p in points] == [("npo-001", 0.3, 1)]


def test_sensitivity_counts_what_comes_near_the_best():
    trials = [
        trial(2, 0.10, low=0.05, high=0.20), trial(3, 0.15), trial(4, 0.5), trial(5, 0.6, "no_effect"),
    ]  # fmt: skip
    told = sensitivity("npo", trials, "lower")
    assert (told["trials"], told["ok"], told["near_best"]) == (4, 3, 2)
    assert told["lr"] == [1e-3, 1e-2]
    assert told["median"] == pytest.approx(0.325)
    assert sensitivity("npo", [trial(0, None, "refused")], "lower")["best"] is None
