"""Records that people should look at: what curation set aside, and judgements that contradict themselves.

Takes suspicions and verdicts; gives a queue, how much reviewers agree, and what was decided, which curation heeds.
"""
