"""`python -m dmkit` is the `dmkit` command."""

from .cli import main

if __name__ == "__main__":
    main()
