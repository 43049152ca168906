"""How a database of an older layout becomes one of this release's: Alembic's revisions, and what runs them.

Nothing but `kkp migrate` imports Alembic: a start only compares a number.
"""
