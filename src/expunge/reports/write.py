"""All files of one report, drawn from one scorecard."""

from __future__ import annotations

from pathlib import Path

from expunge.audit.scorecard import Scorecard
from expunge.errors import ConfigError, Problem
from expunge.reports.files import sha256, write_text
from expunge.reports.markdown import render_markdown
from expunge.reports.model_card import render_model_card
from expunge.reports.page import render_html
from expunge.reports.tables import report_tables

__all__ = ["without_text", "write_reports"]


def write_reports(scorecard: Scorecard, folder: Path, *, replace_scorecard: bool = False) -> dict[str, Path]:
    """Write report.html, report.md, scorecard.json, MODEL_CARD.md and csv/*.csv into `folder`.

    A scorecard.json that is already there is kept: it is what a run stands by. Raises ConfigError where it
    says something else than `scorecard`, unless `replace_scorecard`. Returns the files by name
    ("report.html", "csv/scores.csv").
    """
    folder = Path(folder)
    scorecard = without_text(scorecard)
    target = folder / "scorecard.json"
    if replace_scorecard or not target.exists():
        write_text(target, scorecard.model_dump_json(indent=1) + "\n")
    elif without_text(Scorecard.read(target)).model_dump_json() != scorecard.model_dump_json():
        raise ConfigError(
            Problem(
                str(target),
                "holds another scorecard",
                "Write into a new folder, or ask to replace the scorecard",
            )
        )
    digest = sha256(target)
    texts = {
        "report.html": render_html(scorecard, scorecard_hash=digest),
        "report.md": render_markdown(scorecard, scorecard_hash=digest),
        "MODEL_CARD.md": render_model_card(scorecard, scorecard_hash=digest),
        **{f"csv/{name}.csv": table.csv() for name, table in report_tables(scorecard).items()},
    }
    written = {name: write_text(folder / name, text) for name, text in texts.items()}
    return {"scorecard.json": target, **written}


def without_text(scorecard: Scorecard) -> Scorecard:
    """The same scorecard, with the texts of the records taken out unless it shows text."""
    if scorecard.shows_text:
        return scorecard
    bare = {"prompt": None, "answer": None, "generated": None}
    return scorecard.model_copy(
        update={"records": [row.model_copy(update=bare) for row in scorecard.records]}
    )
