"""`python -m adaptertools`."""

from adaptertools.cli.main import main

if __name__ == "__main__":
    main()
