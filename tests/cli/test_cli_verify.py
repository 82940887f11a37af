"""`expunge verify`: untouched is ok; one changed byte of any file is found and named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import expunge
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
