"""The tests notice a wrong formula: each change below, made in a copy of the package, fails a test.

Not line coverage but evidence: a flipped sign, a dropped mask, a swapped divergence, a lost detach, a wrong
mean, a swapped reference. A change whose text is gone from its file is an error: keep the list current.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.slow

TESTS = Path(__file__).resolve().parents[1]
PACKAGE = TESTS.parent / "src" / "expunge"
GOLDEN, LIKELIHOOD, RELABELING, ROBUST = (
    f"methods/test_golden{name}.py" for name in ("", "_likelihood", "_relabeling", "_robust")
)
SPACE, NEWTON, REWARDS = (f"methods/test_{n}.py" for n in ("weight_space", "newton", "reinforcement"))
RETAIN, TRANSFORMS, SELECTIONS = (
    f"training/test_{n}.py" for n in ("retain_losses", "transforms", "selections")
)
VALUE = "test_golden_value"


class Mutation(NamedTuple):
    """`old` becomes `new` in a file of the package; one of the tests of this name must fail."""

    what: str
    file: str
    old: str
    new: str
    where: str
    test: str

    @property
    def id(self) -> str:
        return f"{Path(self.file).stem}-{self.what}".replace(" ", "_")

    @property
    def node(self) -> str:
        return f"{TESTS / self.where}::{self.test}"


MUTATIONS = [
    Mutation(*row)
    for row in [
        # likelihood
        ("sign flipped", "methods/likelihood/ascent.py", "return -forget", "return forget", GOLDEN, VALUE),
        (
            "reference swapped", "methods/likelihood/npo.py",
            "forget.sum_nll - forget.reference.sum_nll", "forget.reference.sum_nll - forget.sum_nll",
            GOLDEN, VALUE,
        ),
        ("prefactor lost", "methods/likelihood/npo.py", "(2 / self.beta)", "(1 / self.beta)", GOLDEN, VALUE),
        (
            "margin's sign", "methods/likelihood/simnpo.py",
            "mean_nll - self.margin", "mean_nll + self.margin",
            GOLDEN, "test_gradient_equals_autograd_of_the_formula",
        ),
        (
            "detach lost", "methods/likelihood/weighted.py",
            "self.weight(forget).detach()", "self.weight(forget)",
            GOLDEN, "test_golden_gradient_coefficients_at_position_0",
        ),
        (
            "exponent's sign", "methods/likelihood/weighted.py",
            "(self.beta * forget.token_logprobs).exp()", "(-self.beta * forget.token_logprobs).exp()",
            GOLDEN, VALUE,
        ),
        (
            "reference swapped", "methods/likelihood/weighted.py",
            "(forget.token_logprobs - forget.reference.token_logprobs)",
            "(forget.reference.token_logprobs - forget.token_logprobs)",
            LIKELIHOOD, VALUE,
        ),
        (
            "detach lost", "methods/likelihood/satimp.py",
            "self.weight(forget).detach()", "self.weight(forget)",
            LIKELIHOOD, "test_golden_logit_coefficient_at_position_0",
        ),
        (
            "importance of p", "methods/likelihood/satimp.py",
            "(-logp.expm1())", "logp.exp()",
            LIKELIHOOD, VALUE,
        ),
        ("mask dropped", "methods/likelihood/ihl.py", "p.scatter(1, gold, -1.0)", "p", LIKELIHOOD, VALUE),
        (
            "direction of KL", "methods/likelihood/me.py",
            'self.direction == "uniform_to_model"', 'self.direction != "uniform_to_model"',
            LIKELIHOOD, VALUE,
        ),
        (
            "sum for mean", "methods/likelihood/llmu.py", "random.mean(0)", "random.sum(0)",
            LIKELIHOOD, "test_llmu_terms_are_half_the_ascent_and_the_mean_over_draws",
        ),
        (
            "mean lost", "methods/likelihood/pdu.py",
            "logits.amax(-1) - logits.mean(-1)", "logits.amax(-1)",
            LIKELIHOOD, VALUE,
        ),
        (
            "gate upside down", "methods/likelihood/tarf.py",
            "argsort(descending=True", "argsort(descending=False",
            LIKELIHOOD, "test_tarf_takes_its_gate_once_at_the_end_of_identification",
        ),
        # relabeling
        (
            "winner and loser swapped", "methods/relabeling/dpo.py",
            "win, lose = getattr", "lose, win = getattr",
            GOLDEN, "test_golden_value_of_dpo",
        ),
        (
            "reference lost", "methods/relabeling/dpo.py",
            "(lose.reference.sum_nll - lose.sum_nll)", "(0 - lose.sum_nll)",
            GOLDEN, "test_golden_value_of_dpo",
        ),
        (
            "detach lost", "methods/relabeling/ceu.py", "z.detach().masked_fill(gold", "z.masked_fill(gold",
            RELABELING, "test_ceu_gradient_is_that_of_unlikelihood",
        ),
        (
            "mask dropped", "methods/relabeling/ceu.py",
            '.masked_fill(gold, float("-inf"))', "",
            RELABELING, VALUE,
        ),
        (
            "sign flipped", "methods/relabeling/undial.py",
            "-self.beta)).softmax", "self.beta)).softmax",
            RELABELING, VALUE,
        ),
        (
            "clamp lost", "methods/relabeling/whp.py", "- z_ref).clamp(min=0)", "- z_ref)",
            RELABELING, "test_whp_target_lowers_what_reinforcement_raised",
        ),
        (
            "direction of KL", "methods/relabeling/kl_gap.py", "(p.exp() * (p - q))", "(q.exp() * (q - p))",
            RELABELING, "test_kl_gap_is_the_distance_of_two_divergences_per_row",
        ),
        (
            "half lost", "methods/relabeling/jensun.py", "torch.log1p(p)) / 2", "torch.log1p(p))",
            RELABELING, "test_golden_value_of_jensun",
        ),
        # representation
        (
            "sum for mean", "methods/representation/rmu.py", ".square().mean(-1)", ".square().sum(-1)",
            GOLDEN, "test_golden_value_of_rmu",
        ),
        (
            "length of the direction", "methods/representation/rmu.py",
            "return draw / draw.norm()", "return draw",
            GOLDEN, "test_rmu_is_zero_only_on_its_target_whose_norm_is_the_steering",
        ),
        (
            "schedule reversed", "methods/representation/rr.py",
            "self.forget_weight * (1 - s), self.retain_weight * s",
            "self.forget_weight * s, self.retain_weight * (1 - s)",
            ROBUST, "test_reroute_schedule_has_its_end_points",
        ),
        # robust
        (
            "mask inverted", "methods/robust/mudman.py", "g.sign() == a.sign()", "g.sign() != a.sign()",
            ROBUST, "test_without_adversary_it_is_masked_normalized_entropy_ascent",
        ),
        (
            "entropy's sign", "methods/robust/mudman.py", "mean_rows((logp.exp()", "mean_rows(-(logp.exp()",
            ROBUST, "test_entropy_loss_is_negative_entropy",
        ),
        (
            "sign flipped", "methods/robust/lat.py",
            "-torch.log1p(-probability)", "torch.log1p(-probability)",
            ROBUST, "test_away_is_unlikelihood",
        ),
        # weight space
        (
            "sign flipped", "methods/weight_space/task_vector.py", "(-self.alpha", "(self.alpha",
            SPACE, "test_task_vector_is_exact_in_every_tensor_and_subtracts",
        ),
        (
            "consensus not asked", "methods/weight_space/negmerge.py",
            ".abs() == self.count", ".abs() <= self.count",
            SPACE, "test_negmerge_keeps_the_mean_where_all_signs_agree",
        ),
        (
            "ratio inverted", "methods/weight_space/ssd.py",
            "whole[name] / forget[name]", "forget[name] / whole[name]",
            NEWTON, "test_ssd_is_the_formula",
        ),
        (
            "share of the step lost", "methods/weight_space/newton.py",
            "self.strength / self.steps", "self.strength",
            NEWTON, "test_small_steps_follow_the_gradient_anew_with_the_curvature_of_the_start",
        ),
        # reinforcement
        (
            "sign flipped", "methods/reinforcement/grpo_leak.py", "-torch.stack(gains)", "torch.stack(gains)",
            REWARDS, "test_the_policy_gradient_is_the_one_of_the_formula",
        ),
        (
            "KL forgotten", "methods/reinforcement/grpo_leak.py",
            "self.beta * torch.stack(kls)", "0 * torch.stack(kls)",
            REWARDS, "test_kl_is_taken_to_the_original",
        ),
        # retain losses
        (
            "direction of KL", "training/retain.py", "kl_div(logp, ref,", "kl_div(ref, logp,",
            GOLDEN, "test_golden_values_of_retain_losses",
        ),
        (
            "sum for mean", "training/retain.py", "[gap.square().mean(-1)", "[gap.square().sum(-1)",
            GOLDEN, "test_golden_values_of_retain_losses",
        ),
        (
            "winner and loser swapped", "training/retain.py",
            "(retain.refusal.sum_nll - retain.sum_nll)", "(retain.sum_nll - retain.refusal.sum_nll)",
            RETAIN, "test_golden_values",
        ),
        # views
        (
            "mean over the batch", "training/views.py",
            "self.sum_rows(values) / self.num_tokens.clamp(min=1)",
            "self.sum_rows(values) / self.num_tokens.float().mean()",
            GOLDEN, VALUE,
        ),
        # transforms and selections
        (
            "projection's sign", "training/transforms/gru.py",
            "f - (product / square) * a", "f + (product / square) * a",
            TRANSFORMS, "test_golden_numbers",
        ),
        (
            "downhill for uphill", "training/transforms/sam.py",
            "scaled(here, self.rho)", "scaled(here, -self.rho)",
            TRANSFORMS, "test_golden_sam_on_a_quadratic",
        ),
        (
            "mask inverted", "training/transforms/disruption.py",
            "> 0) for", "< 0) for",
            TRANSFORMS, "test_golden_numbers",
        ),
        (
            "sign kept", "training/selections/salun.py",
            "g.abs() for", "g.clamp(min=0) for",
            SELECTIONS, "test_scores_by_hand",
        ),
        (
            "sign flipped", "training/selections/wagle.py",
            "- retain[n] / mu", "+ retain[n] / mu",
            SELECTIONS, "test_scores_by_hand",
        ),
    ]
]  # fmt: skip


class Bench:
    """A copy of the package to change, and the process that tests it."""

    def __init__(self, folder: Path):
        self.folder = folder
        shutil.copytree(PACKAGE, folder / "expunge", ignore=shutil.ignore_patterns("__pycache__"))
        command = [sys.executable, str(Path(__file__).with_name("mutation_server.py"))]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        env = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
        self.server = subprocess.Popen(command, cwd=TESTS.parent, env=env, **pipes)
        assert self.server.stdout.readline() == "ready\n"

    def run(self, nodes: list[str]) -> tuple[int, str]:
        """pytest's exit code and what it said."""
        log = self.folder / "log"
        quiet = ["-W", "ignore::pytest.PytestAssertRewriteWarning", "--tb=short", "-x", *nodes]
        order = {"package": str(self.folder), "arguments": quiet, "log": str(log)}
        self.server.stdin.write(json.dumps(order) + "\n")
        self.server.stdin.flush()
        code = int(self.server.stdout.readline())
        return code, log.read_text(encoding="utf-8")

    def close(self) -> None:
        self.server.communicate(timeout=60)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    made = Bench(tmp_path_factory.mktemp("mutants"))
    yield made
    made.close()


def test_all_is_well_without_a_mutation(bench):
    """The copy can be tested at all; that each test passes is what the rest of the suite says."""
    code, log = bench.run(sorted({mutation.where: mutation.node for mutation in MUTATIONS}.values()))
    assert code == 0, log[-3000:]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.id)
def test_a_mutation_is_noticed(bench, mutation):
    file = bench.folder / "expunge" / mutation.file
    text = file.read_text(encoding="utf-8")
    assert text.count(mutation.old) == 1, f"{mutation.file} has changed: {mutation.old!r}"
    changed = text.replace(mutation.old, mutation.new)
    compile(changed, mutation.file, "exec")
    file.write_text(changed, encoding="utf-8")
    try:
        code, log = bench.run([mutation.node])
    finally:
        file.write_text(text, encoding="utf-8")
    assert code == 1, f"nothing noticed it:\n{log[-3000:]}"
    assert re.search(r"^FAILED ", log, re.M), log[-3000:]
    assert not re.search(r"^E +(Name|Type|Attribute|Import)Error", log, re.M), "it failed for another reason"


def test_the_mutations_are_many_kinds_in_many_files():
    files = {mutation.file for mutation in MUTATIONS}
    assert len([file for file in files if file.startswith("methods/")]) >= 10
    assert len({mutation.id for mutation in MUTATIONS}) == len(MUTATIONS)
