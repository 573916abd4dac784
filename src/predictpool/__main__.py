"""``python -m predictpool``: the command line."""

from predictpool._cli import main

if __name__ == "__main__":
    main()
