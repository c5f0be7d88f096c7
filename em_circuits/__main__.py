"""``python -m em_circuits`` is the ``em-circuits`` command."""

from em_circuits.cli import main

if __name__ == "__main__":
    main()
