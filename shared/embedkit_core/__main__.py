"""`python -m embedkit_core` runs the command `rag-embedkit`."""

from embedkit_core.cli import main

if __name__ == "__main__":
    main()
