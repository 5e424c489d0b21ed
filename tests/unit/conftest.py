"""Fixtures of the unit tests that act on files."""

from support.grounds import ground, owner, store, stranger

__all__ = ["ground", "owner", "store", "stranger"]
