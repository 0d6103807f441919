"""The durable workflow, its schedule, and the jobs that workers lease.

Takes: a wish for a cycle. Gives: a release, or the reason why not. Does not know tensors or models: workers do.
"""
