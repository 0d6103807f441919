"""Typed HTTP client of our server. Takes and gives `schemas` records; does not know rooms, SQL or tensors."""

from everswarm.client.api import EverswarmClient

__all__ = ["EverswarmClient"]
