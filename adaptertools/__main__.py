"""`python -m adaptertools`, and the console script: a thin start, so that Ctrl-C is clean early."""

import sys
from typing import NoReturn


def run() -> NoReturn:
    """Load and run the command line."""
    try:
        from adaptertools.cli.main import main
    except KeyboardInterrupt:
        sys.exit(130)
    main()


if __name__ == "__main__":
    run()
