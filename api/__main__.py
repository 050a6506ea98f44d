"""`python -m api`: the api process (design section 2)."""

from api.server import main

if __name__ == "__main__":
    raise SystemExit(main())
