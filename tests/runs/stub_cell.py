"""Stands in for a cell's process: leaves a made-up cell, or breaks down as STUB_TROUBLE says."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from expunge.runs.bench.engines import end_with_parent

FORGET = {"ga": 0.5, "npo": 0.2}


def made(spec: dict[str, Any], attempt: int) -> dict[str, Any]:
    """Forget rises by 0.01 with the seed, retain is τ itself."""
    forget = {"value": FORGET[spec["method"]] + 0.01 * spec["seed"]}
    rows = [
        {"tau": tau, "alpha": 1 - tau, "met": True, "retain": {"value": tau}, "forget": forget}
        for tau in spec["taus"]
    ]
    return {
        **{name: spec[name] for name in ("benchmark", "part", "method", "seed", "key", "taus")},
        "status": "ok", "controlled": rows, "uncontrolled": {"forget": {"value": 0.0}},
        "original": {"forget": {"value": 1.0}}, "bar_metric": "extraction_strength", "profile": "quick",
        "created": "2026-01-01T00:00:00Z", "expunge_version": "0.1.0", "original_fingerprint": "a",
        "attempts": attempt,
    }  # fmt: skip


def main(text: str, folder: Path) -> None:
    end_with_parent()
    spec, attempt = json.loads(text), int(os.environ["EXPUNGE_ATTEMPT"])
    name = f"{spec['part']}--{spec['method']}--{spec['seed']}"
    with (folder / "begun.txt").open("a") as file:
        file.write(f"{name} {attempt} {os.getpid()} {os.getppid()}\n")
    method, _, what = os.environ.get("STUB_TROUBLE", "").partition(" ")
    if method == spec["method"]:
        if what == "fails":
            raise RuntimeError("out of luck")
        if what == "dies once" and attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        while what == "waits" and not (folder / "go").exists():
            time.sleep(0.05)
    (folder / "cells").mkdir(exist_ok=True)
    (folder / "cells" / f"{name}.json").write_text(json.dumps(made(spec, attempt)))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
