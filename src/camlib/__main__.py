"""The command line: ``python -m camlib``."""

from camlib.cli.app import main

if __name__ == "__main__":
    main()
