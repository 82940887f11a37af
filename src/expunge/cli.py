"""The command line: parse, call, print. Data on stdout, messages on stderr; exit codes 0, 1, 2, 3."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from expunge import ranks
from expunge.errors import ExpungeError, InputError

__all__ = ["app", "main"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Make a language model forget what it must forget, keep what it must keep, and prove both.",
)


class NamesMethods(TyperCommand):
    """A command whose help ends with the methods there are, plug-ins too."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from expunge.runs.catalog import methods_epilog

        self.epilog = methods_epilog()
        super().format_help(ctx, formatter)


Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Recipe overrides, as in train.lr=1e-4.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
New = Annotated[bool, typer.Option("--new", help="Replace a run of another recipe in the output folder.")]
Output = Annotated[str | None, typer.Option("--output", "-o", help="Run folder.")]


@app.command()
def demo(
    overrides: Overrides = None,
    output: Output = None,
    new: New = False,
    show_text: Annotated[
        bool, typer.Option("--show-text/--hide-text", help="Put the (invented) texts into the report.")
    ] = True,
) -> None:
    """Run everything on the embedded benchmark: no data, no download, minutes on a laptop."""
    from expunge.runs.demo import run_demo

    run_demo(overrides or [], output=output, new=new, show_text=show_text)


@app.command()
def init(
    file: Annotated[
        Path | None, typer.Argument(help="The forget set: JSONL, JSON, CSV, parquet or a dataset folder.")
    ] = None,
    from_model: Annotated[
        str | None,
        typer.Option(metavar="ENTITY", help="Instead of a file: forget what the model says about an entity."),
    ] = None,
    model: Annotated[str, typer.Option(help="Folder or hub id of the model.")] = "./my-model",
    retain: Annotated[str | None, typer.Option(help="What must stay.")] = None,
    holdout: Annotated[str | None, typer.Option(help="Records of the same kind the model never saw.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the recipe.")] = Path(
        "recipe.yaml"
    ),
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing recipe.")] = False,
) -> None:
    """Write a commented recipe for your files."""
    from expunge.runs.init import write_recipe

    path = write_recipe(
        file, from_model=from_model, model=model, retain=retain, holdout=holdout, output=output, force=force
    )
    typer.echo(str(path))
    typer.echo(f"Next: read it, then expunge plan {path}", err=True)


@app.command()
def plan(
    recipe: Path,
    overrides: Overrides = None,
    budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="For unlearning: 30 (minutes), 2h, or 5e15flops.")
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Only methods that never saw the records.")] = False,
    robust: Annotated[bool, typer.Option("--robust", help="Methods first that withstand training.")] = False,
    why: Annotated[bool, typer.Option("--why", help="Say which methods were ruled out, and why.")] = False,
    devices: Annotated[int, typer.Option(min=1, help="Processes, each with a device of its own.")] = 1,
    on: Annotated[
        Literal["cpu", "cuda"] | None, typer.Option(help="Tell the time for such a device.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a recipe and its data, show what a run would take and which methods suit; runs nothing."""
    from expunge.runs.plan import plan as make_plan
    from expunge.runs.reading import load_recipe
    from expunge.runs.recommend import Budget
    from expunge.runs.show import print_plan

    within = Budget.read(budget) if budget else None
    made = make_plan(
        load_recipe(recipe, overrides or []),
        budget=within,
        exact=exact,
        robust=robust,
        devices=devices,
        on=on,
    )
    if as_json:
        typer.echo(json.dumps(made.as_dict(), indent=1))
    else:
        print_plan(made, why=why)


@app.command(cls=NamesMethods)
def run(
    recipe: Path,
    overrides: Overrides = None,
    only: Annotated[
        str | None, typer.Option("--only", metavar="STAGE", help="Run up to this stage and stop there.")
    ] = None,
    new: New = False,
    show_text: Annotated[
        bool, typer.Option("--show-text", help="Put forget-set text into the report.")
    ] = False,
) -> None:
    """Unlearn under control, audit and report. Run it again to resume."""
    from expunge.runs.api import run as run_recipe
    from expunge.runs.show import finish

    more = ["show_text=true"] if show_text else []
    finish(run_recipe(recipe, [*(overrides or []), *more], only=only, new=new))


@app.command()
def audit(
    model: Annotated[str, typer.Argument(help="The model to audit: a folder or hub id.")],
    request: Annotated[Path, typer.Argument(help="A recipe (YAML) with the splits, or a forget file.")],
    overrides: Overrides = None,
    original: Annotated[str | None, typer.Option(help="The model before unlearning.")] = None,
    new: New = False,
) -> None:
    """Audit any model against a request; no training recipe needed."""
    from expunge.runs.api import audit_model
    from expunge.runs.show import finish

    finish(audit_model(model, request, overrides or [], original=original, new=new))


@app.command()
def tune(
    recipe: Path,
    overrides: Overrides = None,
    trials: Annotated[int | None, typer.Option(help="Trials of each method.")] = None,
    methods: Annotated[str | None, typer.Option(metavar="A,B,…", help="Methods to search.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Further seeds for the best three trials.")] = None,
    new: New = False,
    as_json: AsJson = False,
) -> None:
    """Search methods, settings and controls under one bar. Run it again to resume, or with more trials."""
    from expunge.runs.tuning import tune as search
    from expunge.runs.tuning_page import print_tuning

    named = None if methods is None else [name.strip() for name in methods.split(",")]
    said = {"trials": trials, "methods": named, "seeds": seeds}
    more = [f"tune.{key}={json.dumps(value)}" for key, value in said.items() if value is not None]
    result = search(recipe, [*(overrides or []), *more], new=new)
    if as_json:
        typer.echo(json.dumps(result.data, indent=1))
    else:
        print_tuning(result.data, result.path)
    if result.best:
        typer.echo(f"Next: expunge run {result.best}", err=True)


@app.command()
def bench(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME [KEY=VALUE]...",
            help="A benchmark (or a YAML file with all of this), then recipe overrides: benchmark.folder=…, "
            "train.lr=…; of one method: npo.beta=0.2, npo.train.lr=…. With --report: results folders.",
        ),
    ],
    splits: Annotated[
        str | None, typer.Option(metavar="A,B,…", help="Parts of the benchmark. Default: its first.")
    ] = None,
    methods: Annotated[str | None, typer.Option(metavar="A,B,…", help="Methods to compare.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Trainings of each method. Default: 3.")] = None,
    tau: Annotated[
        str | None,
        typer.Option(metavar="A,B,…", help="Shares of utility to keep. Default: 0.95,0.9,0.6."),
    ] = None,
    engine: Annotated[str, typer.Option(metavar="pool|ray", help="Processes here, or Ray.")] = "pool",
    jobs: Annotated[int | None, typer.Option(help="Cells at a time. Default: one a core, or a GPU.")] = None,
    gpus: Annotated[float | None, typer.Option(help="GPUs that a cell needs on Ray.")] = None,
    retries: Annotated[int, typer.Option(min=0, help="How often a cell that crashed runs again.")] = 1,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Results folder.")] = None,
    redraw: Annotated[
        bool, typer.Option("--report", help="Write the leaderboard of results folders; compute nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Methods × seeds on a benchmark, each held to every τ: one table and page. Run it again to resume."""
    from expunge.reports.leaderboard_table import print_leaderboard
    from expunge.runs.bench.bench import bench as run_bench
    from expunge.runs.bench.bench import report as report_bench
    from expunge.runs.bench.grid import read_grid

    if redraw:
        made = report_bench([Path(folder) for folder in what], output)
    else:
        grid = read_grid(what[0], what[1:], splits=splits, methods=methods, seeds=seeds, taus=tau)
        place = output or Path("results") / grid.benchmark
        made = run_bench(grid, place, engine=engine, jobs=jobs, gpus=gpus, retries=retries)
    if as_json:
        typer.echo(json.dumps(made.data, indent=1))
    else:
        print_leaderboard(made.data, made.path)
    if made.failed and not redraw:
        raise ExpungeError(made.failure())


@app.command()
def compose(
    recipe: Path,
    overrides: Overrides = None,
    interventions: Annotated[
        str | None, typer.Option(metavar="A,B,…", help="Edits, quantizers and prunings to compose.")
    ] = None,
    pairs: Annotated[
        str | None, typer.Option(metavar="WHICH", help="unlearn: each with unlearning; all: every pair.")
    ] = None,
    new: New = False,
    as_json: AsJson = False,
) -> None:
    """Unlearn before and after editing, quantizing and pruning; one page of both orders. Resumes."""
    from expunge.runs.composing import compose as compose_recipe
    from expunge.runs.composition_page import print_composition

    named = None if interventions is None else [name.strip() for name in interventions.split(",")]
    said = {"interventions": named, "pairs": pairs}
    more = [f"compose.{key}={json.dumps(value)}" for key, value in said.items() if value is not None]
    made = compose_recipe(recipe, [*(overrides or []), *more], new=new)
    if as_json:
        typer.echo(json.dumps(made.data, indent=1))
    else:
        print_composition(made.data, made.path)


@app.command()
def show(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    record: Annotated[str | None, typer.Argument(help="A record's id, or its beginning.")] = None,
    why: Annotated[
        str | None,
        typer.Option(metavar="NUMBER", help="What a number rests on: METRIC/SPLIT/MODEL, or an attack."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show a run's result, one record before, after and under the oracle, or what a number rests on."""
    from expunge.runs.show import show_record, show_run, show_why

    if why is not None:
        show_why(run_folder, why, as_json=as_json)
    elif record is None:
        show_run(run_folder, as_json=as_json)
    else:
        show_record(run_folder, record, as_json=as_json)


@app.command()
def explain(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run.")],
    localizer: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="See: expunge list localizers. Repeatable.")
    ] = None,
    attribution: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="See: expunge list attributions. Repeatable.")
    ] = None,
    records: Annotated[int, typer.Option(help="Forget records that are traced one by one.")] = 8,
) -> None:
    """Say where forgotten records sat, what remains of them by layer, and why others stayed or fell."""
    from expunge.runs.explaining import explain_run

    page = explain_run(
        run_folder, localizers=localizer or (), attributions=attribution or (), records=records
    )
    typer.echo(str(page))


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders; two or more are compared.")
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for the comparison.")] = None,
    show_text: Annotated[
        bool, typer.Option("--show-text", help="Put forget-set text into the report.")
    ] = False,
) -> None:
    """Write a run's report again, or compare several runs on one page."""
    from expunge.runs.show import write_again

    for path in write_again(runs, output, show_text=show_text):
        typer.echo(str(path))


@app.command()
def study(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Finished runs of one request, of several methods.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the study.")] = Path("runs/study"),
    metrics: Annotated[str | None, typer.Option(metavar="A,B,…", help="Metrics to compare.")] = None,
    attacks: Annotated[str | None, typer.Option(metavar="A,B,…", help="Attacks to try them under.")] = None,
) -> None:
    """Which metric to trust: measure the models of several runs before and after attacks. Resumable."""
    from expunge.runs.studying import study as study_runs

    named = [[] if text is None else [n.strip() for n in text.split(",")] for text in (metrics, attacks)]
    typer.echo(str(study_runs(runs, output, metrics=named[0], attacks=named[1])))


@app.command(name="list", cls=NamesMethods)
def list_(
    what: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help="methods, controls, metrics, annotators, attacks, checks, interventions, benchmarks, "
            "localizers, attributions, transforms, selections, retain_losses, optimizers or runs.",
        ),
    ],
    name: Annotated[str | None, typer.Argument(help="One of them, in full, with its settings.")] = None,
    family: Annotated[str | None, typer.Option(help="Only methods of this family.")] = None,
    folder: Annotated[Path, typer.Option(help="Where runs lie.")] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """List what there is, from its cards; nothing heavy is loaded."""
    from expunge.runs.listing import listing, print_listing

    rows = listing(what, folder, name=name, family=family)
    if as_json:
        typer.echo(json.dumps(rows[0] if name else rows, indent=1))
    else:
        print_listing(what, rows, name=name)


@app.command()
def verify(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Finished runs.")],
    key: Annotated[
        Path | None, typer.Option(metavar="PEM", help="Public key that the certificates are signed by.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a run's files, signature, ledger and numbers against its certificate."""
    from expunge.errors import DataError, Problem
    from expunge.runs.verifying import verify as verify_run

    found = [verify_run(run, key) for run in runs]
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    for one in found if not as_json else ():
        typer.echo(f"{one['run']}: {'changed' if one['problems'] else 'ok'} ({'; '.join(one['said'])})")
    if problems := [Problem("", text) for one in found for text in one["problems"]]:
        raise DataError(problems)


@app.command()
def release(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="An audited run.")],
    to: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Deployment folder. Default: the recipe's deploy.")
    ] = None,
    force: Annotated[
        str | None, typer.Option(metavar="REASON", help="Release it although it is refused; kept on record.")
    ] = None,
) -> None:
    """Put a run's controlled model into use; the model before it is kept for a rollback."""
    from expunge.runs.release import release as release_run

    for line in release_run(run_folder, to, force=force):
        typer.echo(line)


@app.command()
def rollback(
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="A deployment folder, or a released run.")],
) -> None:
    """Put the model before the last release back into use, bit for bit."""
    from expunge.runs.release import rollback as roll_back

    for line in roll_back(target):
        typer.echo(line)


@app.command()
def purge(
    run_folder: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="A run folder, or a deployment: what it keeps for rollbacks."),
    ],
    everything: Annotated[bool, typer.Option("--all", help="Also the models and the reports.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove checkpoints, evidence and caches of a run that still hold the forget set."""
    from expunge.runs.purge import purge as purge_run

    if (
        not yes
        and sys.stdin.isatty()
        and not typer.confirm(f"Remove what {run_folder} still holds of the forget set?", err=True)
    ):
        raise typer.Exit(1)
    for line in purge_run(run_folder, everything=everything):
        typer.echo(line)


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if context.invoked_subcommand not in ("run", "audit"):
        ranks.one_process_only(f"expunge {context.invoked_subcommand}")
    if version:
        import expunge

        typer.echo(expunge.__version__)
        raise typer.Exit


def main() -> None:
    """Entry point: errors become one message each and an exit code."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        ranks.join()
        code = app(standalone_mode=False)  # what typer.Exit said, 130 after Ctrl-C
        if code == 130 and ranks.is_first():
            typer.echo("stopped; run the same command again to go on", err=True)
        ranks.leave(code if isinstance(code, int) else 0)
    except ExpungeError as error:
        if ranks.first_to_fail():
            _complain(error)
        ranks.leave(error.exit_code)
    except typer.Abort:
        ranks.leave(1)
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # typer's usage errors
            if message := error.format_message():  # none where the help was shown instead
                typer.echo(f"error: {message}", err=True)
            ranks.leave(2)
        if os.environ.get("EXPUNGE_DEBUG"):
            raise
        fault = "This is a fault of expunge. EXPUNGE_DEBUG=1 shows where."
        if ranks.first_to_fail():
            typer.echo(f"error: {type(error).__name__}: {error}\n{fault}", err=True)
        ranks.leave(1)


def _complain(error: ExpungeError) -> None:
    if not isinstance(error, InputError):
        typer.echo(f"error: {error}", err=True)
        return
    count = len(error.problems)
    if count > 1:
        typer.echo(f"{count} problems:", err=True)
    for problem in error.problems:
        typer.echo(f"error: {problem}" if count == 1 else f"  - {problem}", err=True)


if __name__ == "__main__":
    main()
