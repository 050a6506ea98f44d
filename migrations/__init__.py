"""Alembic environment and revisions of the inventory; `inventory.migrate` runs them.

A new revision is written by hand beside the others; `tests/inventory/test_migrations.py` prints what it lacks.
"""
