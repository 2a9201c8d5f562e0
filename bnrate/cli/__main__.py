"""`python -m bnrate.cli`."""

from bnrate.cli import main

if __name__ == "__main__":
    main()
