"""Forgetting: a person, a device, one interaction, or what has become too old.

Takes a name; gives what was erased and every dataset, adapter and release that had seen it. Knows the tables of all
rooms and decides nothing for them. A model that was trained stays as it is; so do the pseudonyms in a dataset's record
(`split_of_user`, `members`), which nobody can undo without the server's key, and by which its lineage is found later.
"""

from everswarm.server.erasure.retention import Retention, expire
from everswarm.server.erasure.service import erase

__all__ = ["Retention", "erase", "expire"]
