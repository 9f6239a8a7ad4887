"""`python -m server serve`, ended with its parent: the server itself does not read its standard input."""

import os
import signal
import sys
import threading

from server.__main__ import main


def _end_with_parent() -> None:
    while os.read(0, 4096):  # not sys.stdin: a thread that waits in it would break the end of the interpreter
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.exit(main(["serve"]))
