"""The repository as a place to live in: what README, CONTRIBUTING and the pages say is so."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import get_args

import pytest
import typer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import expunge
from expunge.cli import app
from expunge.runs.catalog import COLUMNS, OPTIMIZERS, by_family
from expunge.runs.demo import DEFAULT_METHOD
from expunge.runs.recipe import Recipe
from expunge.training.settings import TrainSettings
from tiny_world import TRAIN, inside, write_recipe

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
COMMANDS = typer.main.get_command(app).commands


def blocks(text: str, language: str = "") -> list[str]:
    """The fenced blocks of a page in one language."""
    return [body for kind, body in re.findall(r"```(\w*)\n(.*?)```", text, re.S) if kind == language]


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [path for name in done.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def python(code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), *map(str, path)])}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)


def command(arguments: list[str], *path: Path) -> str:
    """What a command of the shell prints, in a process of its own."""
    code = f"import sys\nsys.argv = ['expunge', *{arguments!r}]\nfrom expunge.cli import main\nmain()"
    done = python(code, *path)
    assert done.returncode == 0, done.stderr
    return done.stdout


# What the pages say -----------------------------------------------------------------------------------


def said_commands() -> list[str]:
    lines = [line.split("#")[0] for block in blocks(README) for line in block.splitlines()]
    inline = re.findall(r"`(expunge [^`]+)`", README)
    return [m[1] for line in [*lines, *inline] if (m := re.search(r"\bexpunge ([a-z].*)", line.strip()))]


@pytest.mark.parametrize("said", said_commands())
def test_readme_commands_exist(said):
    verb, *words = said.split()
    assert verb in COMMANDS
    options = {o for p in COMMANDS[verb].params for o in p.opts}
    assert {word for word in words if word.startswith("-")} <= options
    for key in [word.split("=")[0] for word in words if "=" in word]:
        assert key.split(".")[0] in Recipe.model_fields


def test_readme_names_every_command():
    assert {said.split()[0] for said in said_commands()} | {"demo"} == set(COMMANDS)


def test_readme_recipe_is_valid(tmp_path):
    (text,) = blocks(README, "yaml")
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    assert expunge.load_recipe(tmp_path / "recipe.yaml").method.name in README


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_are_valid(recipe):
    assert expunge.load_recipe(recipe).output == f"runs/{recipe.stem}"


def test_readme_python_names_exist():
    (code,) = blocks(README, "python")
    compile(code, "README.md", "exec")
    assert set(re.findall(r"\bexpunge\.(\w+)", code)) <= set(expunge.__all__)


def test_readme_names_the_default_method():
    assert f"default method is **`{DEFAULT_METHOD}`**" in README
    assert Recipe.model_fields["method"].default.name == DEFAULT_METHOD
    assert f"runs/demo/{DEFAULT_METHOD}" in README


def test_the_listed_optimizers_are_those_there_are():
    assert set(OPTIMIZERS) == set(get_args(TrainSettings.model_fields["optimizer"].annotation))


def test_readme_tree_is_the_tree():
    (tree,) = [block for block in blocks(README) if block.startswith("src/expunge/")]
    said = set(re.findall(r"^  (\w+)/ ", tree, re.M))
    rooms = {p.parent.name for p in (ROOT / "src" / "expunge").glob("*/__init__.py")}
    assert said == rooms
    modules = {p.name for p in (ROOT / "src" / "expunge").glob("*.py")} - {"__init__.py", "__main__.py"}
    assert set(re.findall(r"\w+\.py", tree)) == modules
    folders = {p.relative_to(ROOT).parts[0] for p in tracked() if p.parent != ROOT}
    assert {"src", *re.findall(r"^(\w+)/ ", tree, re.M)} == {f for f in folders if not f.startswith(".")}


def test_links_lead_somewhere():
    for page in (p for p in tracked() if p.suffix == ".md"):
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_page_is_in_the_index():
    docs = ROOT / "docs"
    index = (docs / "README.md").read_text(encoding="utf-8")
    for page in {*docs.rglob("*.md")} - {docs / "README.md"}:
        assert f"({page.relative_to(docs)})" in index


def test_generated_pages_are_current():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert sorted(generate.stale()) == []


def test_versions_agree():
    assert PROJECT["version"] == expunge.__version__
    assert f"## {expunge.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


# The method in CONTRIBUTING ---------------------------------------------------------------------------


@pytest.fixture
def guest(tmp_path):
    """A folder with the package of someone else: CONTRIBUTING's method, installed with its entry point."""
    (code,) = re.findall(r"<!-- method -->\n```python\n(.*?)```", CONTRIBUTING, re.S)
    (toml,) = blocks(CONTRIBUTING, "toml")
    ((name, module),) = tomllib.loads(toml)["project"]["entry-points"]["expunge.methods"].items()
    package, _, leaf = module.partition(".")
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").touch()
    (tmp_path / package / f"{leaf}.py").write_text(code, encoding="utf-8")
    info = tmp_path / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[expunge.methods]\n{name} = {module}\n")
    return tmp_path, name


def test_every_kind_has_an_entry_point_group_in_the_plural_that_list_uses():
    from expunge.runs.catalog import KINDS

    assert {name: registry.group for name, registry in KINDS.items()} == {
        name: f"expunge.{name}" for name in KINDS
    }


def test_contributing_method_is_listed_through_its_entry_point(guest):
    folder, name = guest
    code = (
        "import json, sys\nfrom expunge.runs.listing import listing\n"
        "assert 'torch' not in sys.modules\nprint(json.dumps(listing('methods')))"
    )
    done = python(code, folder)
    assert done.returncode == 0, done.stderr
    (row,) = [row for row in json.loads(done.stdout) if row["name"] == name]
    assert row["summary"]


@pytest.mark.parametrize(
    "arguments", [["run", "--help"], ["list", "--help"], ["list", "methods"]], ids=" ".join
)
def test_contributing_method_is_named_by_the_command_line(guest, arguments):
    folder, name = guest
    shown = command(arguments, folder)
    assert re.search(rf"\b{name}\b", shown)
    assert not re.search(rf"\b{name}\b", command(arguments)), "only where it is installed"


def test_contributing_method_is_in_the_generated_page(guest):
    folder, name = guest
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'docs')!r})\n"
        "import generate; print(generate.pages()['catalog.md'])"
    )
    done = python(code, folder)
    assert done.returncode == 0, done.stderr
    assert f"#### {name}\n" in done.stdout
    assert f"](#{name})" in done.stdout


@pytest.mark.slow
def test_contributing_method_runs_through_a_recipe(guest, tmp_path_factory):
    folder, name = guest
    with inside(tmp_path_factory.mktemp("world")) as world:
        path = write_recipe(world / "r.yaml", method=name, audit="none", train={**TRAIN, "epochs": 2})
        code = f"import expunge; print(expunge.run({str(path)!r}, ['audit=[prefill]']).scorecard.method)"
        done = python(code, folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == name


def test_contributing_method_keeps_the_contract(guest):
    folder, name = guest
    code = (
        "from expunge.methods import METHODS\nfrom expunge.testing import check_method\n"
        f"check_method(METHODS.get({name!r}))"
    )
    done = python(code, folder)
    assert done.returncode == 0, done.stderr


# The files of the methods ---------------------------------------------------------------------------------

METHOD_FILES = sorted((ROOT / "src" / "expunge" / "methods").glob("*/*.py"))


@pytest.mark.parametrize("file", METHOD_FILES, ids=lambda file: "/".join(file.parts[-2:]))
def test_a_method_is_a_short_file_that_knows_no_other_family(file):
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120, "what methods share lives in training/ or in a second file"
    named = set(re.findall(r"expunge\.methods\.(\w+)", text)) - {"base"}
    assert named <= {file.parent.name}, "methods of other families are reached through the registry"


def test_a_family_is_a_folder_with_a_line_about_it():
    for family, cards in by_family().items():
        folder = ROOT / "src" / "expunge" / "methods" / family
        assert all(card.module.startswith(f"expunge.methods.{family}.") for card in cards)
        assert (folder / "__init__.py").read_text(encoding="utf-8").startswith('"""')


# Import and start -------------------------------------------------------------------------------------


def test_the_public_face_is_lazy():
    done = python(
        "import sys, expunge; print([m for m in sys.modules if m in ('torch', 'numpy', 'pydantic')])"
    )
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("name", expunge.__all__)
def test_every_public_name_is_there(name):
    assert getattr(expunge, name) is not None
    assert name in dir(expunge)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="unlern"):
        _ = expunge.unlern


HELP = [["--help"], ["run", "--help"], ["list", "--help"], ["plan", "--help"]]
QUICK = [*HELP, ["--version"], *(["list", kind, "--json"] for kind in (*COLUMNS, "runs"))]


@pytest.mark.parametrize("arguments", QUICK, ids=" ".join)
def test_help_and_lists_load_nothing_heavy(arguments):
    code = (
        f"import sys\nsys.argv = ['expunge', *{arguments!r}]\nfrom expunge.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "heavy = {'torch', 'transformers', 'pandas', 'scipy', 'altair'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    if "--json" in arguments:
        assert all({"name", "summary"} <= set(row) for row in json.loads(done.stdout))


# Packaging --------------------------------------------------------------------------------------------


def requirements() -> list[Requirement]:
    return [Requirement(r) for r in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"])]


@pytest.mark.parametrize("requirement", requirements(), ids=lambda r: r.name)
def test_constraints_pin_every_requirement_within_its_range(requirement):
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    versions = {canonicalize_name(name): version for name, version in pins.items()}
    assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)], prereleases=True)


@pytest.mark.parametrize(("name", "version"), [("torch", "2.11.0"), ("transformers", "5.17.0")])
def test_older_versions_are_admitted(name, version):
    (requirement,) = [r for r in requirements() if r.name == name]
    assert requirement.specifier.contains(version)


def test_no_trace_of_a_machine_in_any_file():
    machine = ["/" + "work/", "/" + "root/", "/" + "home/", "/opt/" + "wheels", "/opt/" + "pypi"]
    hosts = ["pypi" + ".org", "python" + "hosted", "arti" + "factory"]
    paths = re.compile("|".join(map(re.escape, [*machine, *hosts])))
    for path in tracked():
        if path.suffix in (".png", ".svg"):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            assert not paths.search(line), f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
