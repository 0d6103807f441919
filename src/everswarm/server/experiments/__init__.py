"""Whether a candidate may be released.

Takes an evaluation and a margin; gives a decision with its reason. Knows no database, no model and no device.
"""

from everswarm.server.experiments.promotion import decide

__all__ = ["decide"]
