"""The history of the schema, as Alembic revisions. `python -m everswarm.server.migrations TEXT` adds one.

Takes a database of any earlier version; gives it the tables of this one. Knows the rooms only by their `tables.py`.
"""
