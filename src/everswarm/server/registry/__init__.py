"""Files named by their digest: datasets, soft targets, checkpoints, adapters, bases.

Takes bytes and the sha256 that they promise; gives an `Artifact`, and the bytes again. Keeps them in a folder or
behind any URL that fsspec reads. Does not know what is inside a file.
"""

from everswarm.server.registry.service import ArtifactsDep, ArtifactStore, Upload

__all__ = ["ArtifactStore", "ArtifactsDep", "Upload"]
