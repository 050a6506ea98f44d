"""Alembic's environment: runs the revisions in the transaction of `inventory.migrate`."""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    on_version_apply=context.config.attributes["on_version_apply"],
    # The engine says BEGIN itself, so that SQLite's DDL is rolled back as PostgreSQL's is.
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
