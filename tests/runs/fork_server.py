"""Commands in children of a process that has torch loaded: killing one costs no new start-up.

One JSON line per command on stdin, {args, cwd, env, log}; answers with the child's process id, then its end.
"""

from __future__ import annotations

import json
import os
import sys


def child(order: dict) -> None:
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(order["cwd"])
    os.environ.update(order["env"])
    sys.argv = ["expunge", *order["args"]]
    from expunge.cli import main

    main()


def serve() -> None:
    import torch

    torch.set_num_threads(1)
    print("ready", flush=True)
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            child(json.loads(line))
        print(process, flush=True)
        _, status = os.waitpid(process, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve()
