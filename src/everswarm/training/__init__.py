"""Room 2: learns from feedback. Comes and goes; needs tensors, knows no web framework and no SQL.

Takes a job of a cycle, gives the record of its stage. The stages do not know each other; `pipeline` calls them.
"""
