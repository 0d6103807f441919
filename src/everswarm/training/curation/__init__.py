"""Takes the snapshot of a cycle; gives a dataset version: files and a card that accounts for every record.

Pure functions over frames; the same snapshot, rules and seed give the same bytes, whatever the engine. Does not know
where records come from, or what learns from them.
"""

from everswarm.training.curation.contamination import suite_fingerprints
from everswarm.training.curation.curate import Curated, curate
from everswarm.training.curation.engine import Engine, LocalEngine, engine_of
from everswarm.training.curation.files import (
    DatasetFiles,
    read_desirabilities,
    read_examples,
    read_preferences,
    read_suspicions,
)
from everswarm.training.curation.tasks import TASKS

__all__ = [
    "TASKS",
    "Curated",
    "DatasetFiles",
    "Engine",
    "LocalEngine",
    "curate",
    "engine_of",
    "read_desirabilities",
    "read_examples",
    "read_preferences",
    "read_suspicions",
    "suite_fingerprints",
]
