"""What `make bench` and `make bench-recovery` run. Each module is a program; run one alone with `python -m`."""
