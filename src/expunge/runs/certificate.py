"""The run certificate: `certificate.json`, a hash of every file of a finished run, signed on wish.

Another thing than the certificate of an exact method. Signatures are Ed25519 (RFC 8032) over the canonical
JSON of everything but the signature; the key is the PEM file that EXPUNGE_SIGN_KEY names.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import expunge
from expunge.errors import ConfigError, DataError, Problem, require
from expunge.runs.folder import code_version, hash_of, write_json
from expunge.runs.kept import FOLDER
from expunge.runs.notes import read_json

__all__ = [
    "FILE", "certify", "check_unchanged", "file_hash", "hashes", "key_mark", "notes_hash",
    "signature_problem", "signer", "stage_keys",
]  # fmt: skip

FILE = "certificate.json"
_APART = (FILE, "run.json")
"""Not hashed as files: itself, and the notes, which a release adds to."""


def certify(run: Path, *, key: bytes, verdict: str, head: str, models: Mapping[str, str]) -> Path:
    """Write the certificate of a finished run. `models`: name → place, for models outside the run folder."""
    outside = {n: Path(p) for n, p in models.items() if Path(p).is_dir()}
    made: dict[str, Any] = {
        "kind": "run certificate",
        "expunge_version": expunge.__version__,
        "code": code_version("."),
        "verdict": verdict,
        "ledger_head": head,
        "key": key_mark(key),
        "notes": notes_hash(run),
        "stages": stage_keys(run),
        "files": hashes(run, key),
        "models": {
            name: {"place": str(place), "files": hashes(place, key)}
            for name, place in outside.items()
            if not place.absolute().is_relative_to(Path(run).absolute())
        },
    }
    if private := signer():
        made["signed_by"] = _mark(private.public_key())
        made["signature"] = private.sign(_canonical(made)).hex()
    write_json(Path(run) / FILE, made)
    return Path(run) / FILE


def hashes(folder: Path, key: bytes) -> dict[str, str]:
    """File → hash, for every file of a folder."""
    files = sorted(p for p in Path(folder).rglob("*") if p.is_file() and not p.name.endswith(".tmp"))
    names = {p.relative_to(folder).as_posix(): p for p in files}
    return {name: file_hash(path, name, key) for name, path in names.items() if name not in _APART}


def file_hash(path: Path, name: str, key: bytes) -> str:
    """The SHA-256 of a file; keyed for the request, whose text could otherwise be guessed and compared."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
    if name.split("/")[0] == FOLDER:
        digest = hmac.new(key, digest, hashlib.sha256).digest()
    return digest.hex()


def notes_hash(run: Path) -> str:
    """A hash of what run.json says of the stages and of the life up to the audit."""
    state = read_json(Path(run) / "run.json")
    if not isinstance(state, dict):
        return ""
    life = [e for e in state.get("life", []) if e.get("state") not in ("released", "rolled back")]
    return hash_of([state.get("created"), state.get("stages"), life])


def stage_keys(run: Path) -> dict[str, str]:
    """Stage → key, as run.json has them."""
    state = read_json(Path(run) / "run.json")
    stages = state.get("stages", {}) if isinstance(state, dict) else {}
    return {name: known["key"] for name, known in stages.items()}


def check_unchanged(run: Path, key: bytes) -> None:
    """Raise DataError where a file of a stage is not what the run's certificate says.

    A stage that was computed anew since then (another key) is left out: a rerun makes new files, and must not
    put its name to files that somebody changed.
    """
    made = read_json(Path(run) / FILE)
    if not isinstance(made, dict) or made.get("key") != key_mark(key):
        return
    now = stage_keys(run)
    same = {name for name, kept in made.get("stages", {}).items() if now.get(name) == kept}
    problems = []
    for name, expected in made.get("files", {}).items():
        path = Path(run) / name
        if any(name.startswith(f"{stage}/") for stage in same) and path.is_file():
            found = file_hash(path, name, key)
            if found != expected:
                what = f"was changed after the run was certified: expected {expected}, found {found}"
                problems.append(Problem(str(path), what, "Put it back, or run with --new"))
    if problems:
        raise DataError(problems)


def key_mark(key: bytes) -> str:
    """Which secret the keyed hashes were made with, without saying it."""
    return hmac.new(key, b"expunge run certificate", hashlib.sha256).hexdigest()[:16]


def signer() -> Any:
    """The private key that EXPUNGE_SIGN_KEY names, or None; ConfigError where it cannot be used."""
    named = os.environ.get("EXPUNGE_SIGN_KEY")
    return _load(named, private=True) if named else None


def signature_problem(made: Mapping[str, Any], public: Path) -> str | None:
    """What is wrong with the signature under this public key, or None."""
    key = _load(str(public), private=False)
    if "signature" not in made:
        return "is not signed"
    told = {name: value for name, value in made.items() if name != "signature"}
    try:
        key.verify(bytes.fromhex(made["signature"]), _canonical(told))
    except (_invalid(), ValueError, TypeError):
        return (
            f"signature: expected one by {_mark(key)}, found one by {made.get('signed_by')} that does not fit"
        )
    return None


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _library(module: str) -> Any:
    return require(f"cryptography.{module}", "cryptography", "a signed run certificate")


def _invalid() -> type[Exception]:
    found: type[Exception] = _library("exceptions").InvalidSignature
    return found


def _mark(public: Any) -> str:
    return hashlib.sha256(public.public_bytes_raw()).hexdigest()[:16]


def _load(named: str, *, private: bool) -> Any:
    pem = _library("hazmat.primitives.serialization")
    kinds = _library("hazmat.primitives.asymmetric.ed25519")
    wanted = kinds.Ed25519PrivateKey if private else kinds.Ed25519PublicKey
    try:
        data = Path(named).read_bytes()
        key = pem.load_pem_private_key(data, None) if private else pem.load_pem_public_key(data)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(Problem(named, f"is no key that can be read ({type(error).__name__})")) from None
    if not isinstance(key, wanted):
        raise ConfigError(Problem(named, "is no Ed25519 key of the kind needed", "Make one with openssl"))
    return key
