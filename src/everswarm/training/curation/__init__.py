"""Takes judged interactions; gives a dataset's examples in three splits and a card that accounts for every record.

Pure functions over records; the same records and seed give the same bytes. Does not know where records come from.
"""

from everswarm.training.curation.curate import Curated, curate
from everswarm.training.curation.files import read_examples, read_snapshot, write_examples

__all__ = ["Curated", "curate", "read_examples", "read_snapshot", "write_examples"]
