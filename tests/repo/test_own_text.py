"""The repository holds its own text alone: nothing of others' data, nobody's personal data."""

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
WORDS = 8
"""Words in a row that make a quotation. Data are read in steps of as many: 16 in a row are always found."""

LARGEST = 600_000  # bytes of a text file
BINARY = {".png"}
EMAIL = re.compile(r"[\w.+-]+@([\w-]+(?:\.[\w-]+)+)")
OWN_DOMAINS = re.compile(r"(^|\.)(example(\.\w+)?|invalid|test|localhost)$|\.(example|invalid|test)$")
PHONE = re.compile(
    r"(?<![\d.\w])(\+\d{1,3}[ -]?)?\(\d{3}\) ?\d{3}-\d{4}|(?<![\d.\w-])\d{3}-\d{2}-\d{4}(?![\d-])"
)


@cache
def files() -> dict[str, str]:
    """Tracked text files; what another hand is just adding does not count."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    paths = [ROOT / name for name in names.decode().split("\0") if name]
    return {
        str(p.relative_to(ROOT)): p.read_text(encoding="utf-8")
        for p in paths
        if p.is_file() and p.suffix not in BINARY
    }


def words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def quotations(own: set[tuple[str, ...]], text: str) -> list[str]:
    """Runs of words of a foreign text that the repository holds too."""
    parts = words(text)
    runs = (tuple(parts[i : i + WORDS]) for i in range(0, len(parts) - WORDS + 1, WORDS))
    return [" ".join(run) for run in runs if run in own and len(set(run)) > WORDS // 2]


def runs_of(texts) -> set[tuple[str, ...]]:
    found = set()
    for text in texts:
        parts = words(text)
        found.update(zip(*(parts[i:] for i in range(WORDS)), strict=False))
    return found


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not here")
def test_no_text_of_the_data_is_in_the_repository():
    own = runs_of(files().values())
    found = {}
    for file in sorted(SHARED.rglob("*")):
        if file.suffix in (".jsonl", ".json", ".txt") and file.name != "MANIFEST.json":
            quoted = quotations(own, file.read_text(encoding="utf-8", errors="replace"))
            if quoted:
                found[str(file.relative_to(SHARED))] = quoted[:3]
    assert not found


def test_a_quotation_would_be_found():
    foreign = (
        "The ferry to the outer island leaves when the harbor master has counted every goat, "
        "and nobody knows how long that takes."
    )
    own = runs_of([f"# a comment\nTEXT = '{foreign}'\n"])
    assert quotations(own, "Before it. " + foreign)
    assert not quotations(
        runs_of(["the harbor master counts, and the goats know how long it takes"]), foreign
    )


@pytest.mark.parametrize("name", sorted(files()))
def test_a_file_holds_no_personal_data_and_is_small(name):
    text = files()[name]
    assert len(text) < LARGEST
    domains = {domain.lower() for domain in EMAIL.findall(text)}
    assert not [domain for domain in domains if not OWN_DOMAINS.search(domain)], "an e-mail address"
    assert not PHONE.search(text), "a number of a phone or a person"
