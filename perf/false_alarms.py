"""How often an audit calls a second oracle a leak, and how often it finds a leak that was planted.

    python perf/false_alarms.py [--oracles 5]

Oracles are trained on the retain records alone and differ in their seed only: none of them can leak. Every
pair is audited with one as the candidate, the other as the oracle. An alarm is a verdict *not unlearned*,
*output-only* or *suppressed*, or a permutation over entities that finds more than in the oracle at 0.05 after
Holm's correction over what was asked (directly and by each attack). Writes docs/false-alarms.md.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests" / "attacks"))

import numpy as np  # noqa: E402
from small_world import make_request, make_subject, taught  # noqa: E402

from expunge.attacks import Field  # noqa: E402
from expunge.audit.attack_rows import Direct, attack_rows, estimate, residual  # noqa: E402
from expunge.audit.attacking import make_attack, run_attack  # noqa: E402
from expunge.audit.facts import AuditFacts, Estimate  # noqa: E402
from expunge.audit.permutation import holm, permutation_test  # noqa: E402
from expunge.audit.verdict import judge  # noqa: E402
from expunge.measure.score import score_sheet  # noqa: E402
from expunge.measure.sheet import make_sheet  # noqa: E402
from expunge.metrics import make_metric  # noqa: E402

REQUEST = make_request(holdout=False)
METRIC = "extraction_strength"
ATTACKS = ("quantize", "worst_case")
ALARMS = ("not unlearned", "output-only", "suppressed")
SHARES = (0.1, 0.25, 0.5)
STEPS, LEAK_STEPS = 60, 40


class Measured(NamedTuple):
    """One model: its direct score and what each attack found."""

    score: Any
    attacks: dict[str, list[dict[str, Any]]]
    entities: dict[str, str]


class Finding(NamedTuple):
    word: str
    p: float  # the smallest after Holm

    @property
    def alarm(self) -> bool:
        return self.word in ALARMS or self.p <= 0.05


def measured(subject: Any) -> Measured:
    field = Field(REQUEST, "quick")
    evidence = score_sheet(subject, make_sheet(subject.encoder, REQUEST.forget, "forget"))
    score = make_metric(METRIC).score({"forget": evidence}, "forget")
    attacks = {name: run_attack(make_attack(name), subject, field) for name in ATTACKS}
    return Measured(score, attacks, dict(evidence.entity_of))


def audited(original: Measured, candidate: Measured, oracle: Measured) -> Finding:
    models = {"original": original, "controlled": candidate, "oracle": oracle}
    direct = Direct(METRIC, {m: seen.score for m, seen in models.items()}, candidate.entities, "oracle")
    rows = [
        row
        for name in ATTACKS
        for row in attack_rows(name, {m: seen.attacks[name] for m, seen in models.items()}, direct)[0]
        if row.worst
    ]
    found = residual(direct)
    left = None
    if found is not None and found.recovery is not None:
        left = Estimate(found.recovery, *(found.interval or (None, None)))
    facts = AuditFacts(
        metric=METRIC,
        original=estimate(original.score) or Estimate(0.0),
        controlled=estimate(candidate.score) or Estimate(0.0),
        oracle=estimate(oracle.score),
        residual=left,
        attacks=rows,
    )
    p = {"direct": _above(candidate.score.per_record, oracle.score.per_record, candidate)}
    p |= {name: _above(_worst(candidate, name), _worst(oracle, name), candidate) for name in ATTACKS}
    return Finding(judge(facts).word, min(holm(p).values()))


def _above(ours: dict[str, float], theirs: dict[str, float], candidate: Measured) -> float:
    return permutation_test(ours, theirs, candidate.entities).above


def _worst(model: Measured, attack: str) -> dict[str, float]:
    """Each record at its strongest over the attack's configurations."""
    tables = [entry["scores"]["forget"][METRIC] for entry in model.attacks[attack]]
    return {record: max(t.get(record, 0.0) for t in tables) for record in tables[0]}


def planted(oracle: Any, share: float, seed: int) -> Any:
    """The oracle after a few steps on a share of the forget facts, whole entities first."""
    people = sorted({r.entity for r in REQUEST.forget})
    order = {p: i for i, p in enumerate(np.random.default_rng(seed).permutation(people))}
    facts = sorted(REQUEST.forget, key=lambda r: order[r.entity])
    return taught(oracle, tuple(facts[: max(1, round(share * len(facts)))]), LEAK_STEPS)


def run(oracles: int = 5, shares: Sequence[float] = SHARES) -> dict[str, list[Finding]]:
    """ "null" and each planted share → the findings: every ordered pair, and one planted model per oracle."""
    original = measured(taught(make_subject(99), (*REQUEST.forget, *REQUEST.retain), 2 * STEPS))
    models = [taught(make_subject(seed), REQUEST.retain, STEPS) for seed in range(oracles)]
    seen = [measured(model) for model in models]
    pairs = itertools.permutations(range(oracles), 2)
    found = {"null": [audited(original, seen[i], seen[j]) for i, j in pairs]}
    for share in shares:
        leaks = [measured(planted(model, share, seed)) for seed, model in enumerate(models)]
        found[f"{share:.0%}"] = [
            audited(original, leak, seen[(i + 1) % oracles]) for i, leak in enumerate(leaks)
        ]
    return found


def page(found: dict[str, list[Finding]], seconds: float) -> str:
    rows = [
        f"| {'none: a second oracle' if name == 'null' else f'{name} of the forget facts'} | {len(each)} "
        f"| {sum(f.word in ALARMS for f in each)} | {sum(f.p <= 0.05 for f in each)} "
        f"| {sum(f.alarm for f in each)} |"
        for name, each in found.items()
    ]
    doc = (__doc__ or "").split("\n\n")[2].replace("\n", " ")
    return "\n".join(
        [
            "# False alarms and power",
            "",
            doc.replace(" Writes docs/false-alarms.md.", ""),
            "",
            "| planted | audits | alarms by verdict | alarms by permutation | alarms in all |",
            "|---|---|---|---|---|",
            *rows,
            "",
            f"{len(REQUEST.forget)} forget records of {len({r.entity for r in REQUEST.forget})} people, a "
            f"two-layer Llama; asked directly, by {' and '.join(ATTACKS)}. Ordered pairs share models and "
            "are not independent of one another. A planted leak was learned in "
            f"{LEAK_STEPS} steps; its oracle is another seed's. A leak "
            "about k of the people cannot give a p below 1/2^k: after Holm over three only a leak about all "
            "six would reject here, so the permutation has no power in a world this small and "
            "the verdict must see it.",
            "",
            f"Made by `python perf/false_alarms.py` in {seconds:.0f} seconds.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--oracles", type=int, default=5)
    start = time.time()
    found = run(parser.parse_args().oracles)
    text = page(found, time.time() - start)
    (ROOT / "docs" / "false-alarms.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
