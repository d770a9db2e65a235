"""`python -m adaptertools`, and the console script: a thin start and a quick end."""

import os
import sys
from typing import NoReturn


def run() -> NoReturn:
    """Run the command line and leave at once: taking torch down again would cost 0.4 s."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's idle threads spin
    try:
        from adaptertools.cli.main import main

        main()
    except KeyboardInterrupt:
        code: object = 130
    except SystemExit as end:
        code = end.code
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        code = 1
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


if __name__ == "__main__":
    run()
