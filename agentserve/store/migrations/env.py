"""Alembic's entry: runs the revisions on the connection that `upgrade` hands over.

Rule: it opens no connection of its own; the command line of Alembic is not used.
"""

from alembic import context

from agentserve.store.schema import Row

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Row.metadata,
    render_as_batch=True,  # SQLite cannot alter columns in place
)
with context.begin_transaction():
    context.run_migrations()
