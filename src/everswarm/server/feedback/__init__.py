"""What models answered, and what people thought of it.

Takes interactions and judgements, one by one, in batches from devices, or from a file; gives the judged interactions
that a cycle freezes, in an order and a form that depend on nothing but what is stored. Knows nothing of training.
"""

from everswarm.server.feedback.batches import BatchResult, accept_training_feedback, store_batch
from everswarm.server.feedback.files.importer import ImportReport, LineError, import_file
from everswarm.server.feedback.repository import FeedbackStats
from everswarm.server.feedback.service import (
    NewInteraction,
    judged_interactions,
    record_feedback,
    record_interaction,
    stats,
)

__all__ = [
    "BatchResult",
    "FeedbackStats",
    "ImportReport",
    "LineError",
    "NewInteraction",
    "accept_training_feedback",
    "import_file",
    "judged_interactions",
    "record_feedback",
    "record_interaction",
    "stats",
    "store_batch",
]
