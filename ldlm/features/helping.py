"""`python -m ldlm.features.helping`: the program of a helper (`helpers`), which reads its task from a line on stdin."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer

from ldlm import config as configs
from ldlm.config import ExtractConfig
from ldlm.errors import InputError, Unreadable
from ldlm.features.digests import Seen
from ldlm.features.helpers import COULD_NOT_READ, REFUSED
from ldlm.features.packing import Ends, Packing
from ldlm.features.shares import Share
from ldlm.location import locate

STDERR = 2  # its descriptor


def main() -> None:
    """Tokenise pieces until all are done, or the process that asked for help ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes, and the one that asked ends this one
    task = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    packing = packing_of(task)
    try:
        packing.tokenize(packing.planned() or [], helpers=0)
    except InputError as error:
        os.write(STDERR, str(error).encode())  # to the process that asked for help, not to the user
        raise SystemExit(COULD_NOT_READ if isinstance(error, Unreadable) else REFUSED) from None


def packing_of(task: Mapping[str, Any]) -> Packing:
    """The packing that a task (`Packing.task`) describes."""
    folder, claims = locate(task["folder"]), locate(task["claims"])
    tokenizer = Tokenizer.from_str((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer.encode_special_tokens = task["split_special_tokens"]
    config = configs.from_dict(ExtractConfig, task["config"])
    share = task["share"] and Share(*task["share"])
    seen = {path: Seen(*one) for path, one in task["seen"].items()}
    return Packing(config, folder, claims, tokenizer, Ends(*task["ends"]), share=share, seen=seen)


def _end_with_stdin() -> None:
    """End this process, whatever it is doing, once nobody holds the other end of stdin."""
    while os.read(sys.stdin.fileno(), 1):  # not through sys.stdin, whose lock a thread must not hold when Python ends
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
