"""The TOFU results as a page: docs/tofu.md from finished runs.

expunge run recipes/tofu-forget01.yaml
expunge run recipes/tofu-forget05.yaml
python perf/tofu_page.py runs/tofu-forget01 runs/tofu-forget05
"""

from __future__ import annotations

import sys
from pathlib import Path

import expunge

ROWS = (
    ("extraction_strength", "forget"),
    ("extraction_strength", "forget_hard"),
    ("extraction_strength", "report"),
    ("probability", "forget"),
    ("rougeL_recall", "forget"),
    ("truth_ratio_closer_to_1", "forget"),
    ("forget_quality", "forget"),
    ("model_utility", "report"),
    ("mia_min_k_plus_plus", "forget"),
    ("privleak", "forget"),
)
MODELS = ("original", "unlearned", "controlled", "oracle")


def cell(card: expunge.Scorecard, metric: str, split: str, model: str) -> str:
    row = card.score(metric, split, model)
    if row is None:
        return "–"
    if row.value is None:
        return f"n/a ({row.reason.replace('_', ' ')[:40]})"
    ends = f" [{row.low:.3f}, {row.high:.3f}]" if row.low is not None and row.high is not None else ""
    value = f"{row.value:.2e}" if 0 < abs(row.value) < 0.0005 else f"{row.value:.3f}"
    return value + ends


def section(folder: Path) -> list[str]:
    card = expunge.Scorecard.read(folder / "scorecard.json")
    made = card.provenance.get("benchmark", {})
    control = card.control[0]
    sizes = {split.name: split.records for split in card.splits}
    walls = {row.stage: row.wall for row in card.cost}
    training = max(walls.get("benchmark: original", 0.0), walls.get("benchmark: oracle", 0.0))
    rest = sum(wall for stage, wall in walls.items() if not stage.startswith("benchmark"))
    lines = [
        f"## {made.get('part', folder.name)}",
        "",
        f"Command: `expunge run recipes/{folder.name}.yaml`. Retain {sizes['retain']} trained,",
        f"{sizes['calibration']} calibration, {sizes['report']} report. Original and oracle were trained",
        f"side by side in {training / 60:.1f} minutes, everything after took {rest / 60:.1f} minutes.",
        "",
    ]
    for model in ("original", "oracle"):
        facts = made.get(model)
        if facts:
            what = "forget" if model == "original" else "retain"
            known = facts["reached"][what]
            strength, probability = known["extraction_strength"], known["probability"]
            reached = f"extraction strength {strength:.3f} at probability {probability:.3f} on {what}"
            lines.append(f"- {model}: {facts['epochs']:g} epochs, {reached}")
    lines += [
        f"- `{card.method}`, `uwc` on {control.metric} at keep {control.tau:g}: α = {control.alpha:.3f}",
        f"- verdict: **{card.verdict.word}** (profile {card.profile}); {card.verdict.sentence}",
        "",
        "| metric, split | " + " | ".join(MODELS) + " |",
        "|---|" + "---|" * len(MODELS),
    ]
    for metric, split in ROWS:
        lines.append(
            f"| {metric}, {split} | " + " | ".join(cell(card, metric, split, m) for m in MODELS) + " |"
        )
    lines += ["", "| attack | original | controlled | oracle | recovery |", "|---|---|---|---|---|"]
    for row in card.attacks:
        if row.worst:
            numbers = " | ".join(
                "–" if v is None else f"{v:.3f}" for v in (row.original, row.controlled, row.oracle)
            )
            share = (
                f"n/a: {row.reason}"
                if row.recovery is None
                else f"{row.recovery:.3f} [{row.low:.3f}, {row.high:.3f}]"
            )
            lines.append(f"| {row.attack.replace('_', ' ')} | {numbers} | {share} |")
    return [*lines, ""]


def main() -> None:
    text = [
        "# TOFU on a tiny Llama",
        "",
        "Real TOFU rows (Maini et al. 2024, arXiv 2401.06121), a pretrained Llama of 260,032 parameters,",
        "two CPU cores. Written by `python perf/tofu_page.py RUN…` from scorecards; scores with their",
        "95 % interval, clustered by author. Few authors make rough intervals: forget01 has two. Such",
        "a small model shows that the machinery is right, and nothing about methods at published size.",
        "",
    ]
    for folder in sys.argv[1:]:
        text += section(Path(folder))
    Path("docs/tofu.md").write_text("\n".join(text).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
