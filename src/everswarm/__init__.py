"""everswarm: a self-hosted swarm of open language models that trains itself."""

__version__ = "0.1.0"
