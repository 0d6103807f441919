"""Feedback and curation: what it costs to take judgements, and to make a dataset of them."""
