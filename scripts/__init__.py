"""Set-up, called by the Makefile. `python -m scripts.setup` is the whole of it."""
