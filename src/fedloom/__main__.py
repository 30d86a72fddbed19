"""`python -m fedloom` is the `fedloom` command."""

from __future__ import annotations

from fedloom.cli.app import main

if __name__ == "__main__":
    main()
