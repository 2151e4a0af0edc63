"""``python -m gnewton``."""

from gnewton.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
