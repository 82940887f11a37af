"""Tests against a changed copy of the package, in children of a process that has torch loaded.

One JSON line per order on stdin, {package: folder that holds `expunge`, arguments: pytest's, log}; answers
with pytest's exit code.
"""

from __future__ import annotations

import json
import os
import sys
import traceback

CRASHED = 70


def child(order: dict) -> int:
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.path.insert(0, order["package"])
    sys.dont_write_bytecode = True
    import expunge

    assert expunge.__file__.startswith(order["package"]), expunge.__file__
    import pytest

    return int(pytest.main(order["arguments"]))


def serve() -> None:
    import peft  # noqa: F401
    import pytest  # noqa: F401
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401

    import expunge.runs.pipeline
    import expunge.testing  # noqa: F401  # for what it imports from others: that stays loaded

    for name in [name for name in sys.modules if name.split(".")[0] == "expunge"]:
        del sys.modules[name]
    torch.set_num_threads(1)
    print("ready", flush=True)
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            code = CRASHED
            try:
                code = child(json.loads(line))
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(code)
        _, status = os.waitpid(process, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve()
