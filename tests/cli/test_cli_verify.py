"""`expunge verify`: untouched is ok; one changed byte of any file is found and named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import expunge
from expunge.audit.scorecard import Scorecard
from expunge.errors import InputError
from expunge.runs.certificate import check_unchanged
from expunge.runs.facts import secret_key
from expunge.runs.tracing import trace
from tiny_world import command, inside, recipe

pytestmark = pytest.mark.slow

RUN = Path("runs/v")


def write_keys(folder: Path, name: str) -> tuple[Path, Path]:
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    form = (s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
    private.write_bytes(key.private_bytes(*form))
    spki = (s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)
    public.write_bytes(key.public_key().public_bytes(*spki))
    return private, public


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    with inside(tmp_path_factory.mktemp("verify")) as folder, pytest.MonkeyPatch.context() as patch:
        private, public = write_keys(folder, "ours")
        patch.setenv("EXPUNGE_SIGN_KEY", str(private))
        train = {"steps": 4, "lr": 1e-3, "batch": 6}
        expunge.run(recipe(train=train, audit=["quantize"], output=str(RUN)))
        yield public


def test_untouched_is_ok(finished):
    said = command("verify", RUN, "--key", finished)
    assert said.code == 0, said.err
    assert "signature checked" in said.out
    assert "recomputed" in said.out
    assert "signature not checked" in command("verify", RUN).out


def test_one_changed_byte_of_any_file_is_found_and_named(finished):
    files = [
        p for p in sorted(RUN.rglob("*")) if p.is_file() and p.name not in ("certificate.json", "run.json")
    ]
    made = json.loads((RUN / "certificate.json").read_text())
    assert {p.relative_to(RUN).as_posix() for p in files} == set(made["files"])
    from expunge.runs.verifying import verify

    for path in files:
        before = path.read_bytes()
        middle = len(before) // 2
        path.write_bytes(before[:middle] + bytes([before[middle] ^ 1]) + before[middle + 1 :])
        problems = verify(RUN)["problems"]
        path.write_bytes(before)
        assert any(p.startswith(f"{path}: expected") for p in problems), path
    assert verify(RUN)["problems"] == []


def test_a_number_is_traced_to_its_rows(finished):
    said = command("show", RUN, "--why", "extraction_strength/forget/controlled")
    assert said.code == 0, said.err
    told, again = said.out.split("\n")[0].split(": ")[1].split(", computed again ")
    assert again.startswith(f"{told}, from runs/v/measure/controlled/forget-")
    card = Scorecard.read(RUN / "scorecard.json")
    assert (
        len(said.out.strip().splitlines()) == 1 + card.score("extraction_strength", "forget", "controlled").n
    )
    assert all((RUN / row.evidence).is_file() for row in [*card.scores, *card.attacks])
    (found, *_) = trace(RUN, "quantize")
    assert found.told == pytest.approx(found.again)
    assert found.records


def test_a_number_that_is_none_is_named(finished):
    said = command("show", RUN, "--why", "extraction_strenght/forget/controlled")
    assert said.code == 2
    assert "extraction_strength/forget/controlled" in said.err


def test_a_rerun_does_not_certify_a_changed_file(finished):
    path = next((RUN / "measure/controlled").glob("forget-*.parquet"))
    before, certificate = path.read_bytes(), (RUN / "certificate.json").read_bytes()
    path.write_bytes(before[:-9] + bytes([before[-9] ^ 1]) + before[-8:])
    with pytest.raises(InputError, match="changed after the run was certified"):
        check_unchanged(RUN, secret_key(RUN))
    path.write_bytes(before)
    check_unchanged(RUN, secret_key(RUN))
    assert (RUN / "certificate.json").read_bytes() == certificate


def test_another_signature_and_a_changed_certificate_are_found(finished, tmp_path):
    _, other = write_keys(tmp_path, "other")
    said = command("verify", RUN, "--key", other)
    assert said.code == 2
    assert "signature" in said.err
    path = RUN / "certificate.json"
    before = path.read_text()
    path.write_text(before.replace('"verdict": "', '"verdict": "x'))
    said = command("verify", RUN, "--key", finished)
    path.write_text(before)
    assert said.code == 2


def test_a_cut_ledger_is_found(finished):
    path = RUN.parent / "ledger.jsonl"
    before = path.read_text()
    path.write_text("".join(before.splitlines(keepends=True)[:-1]))
    said = command("verify", RUN)
    path.write_text(before)
    assert said.code == 2
    assert "ledger.jsonl" in said.err


def test_a_key_that_cannot_be_read_is_exit_2(finished):
    assert command("verify", RUN, "--key", "no.pem").code == 2


def test_a_purged_run_verifies_as_purged(finished):
    assert command("purge", RUN, "--yes").code == 0
    said = command("verify", RUN, "--key", finished)
    assert said.code == 0, said.err
    assert "purged" in said.out
