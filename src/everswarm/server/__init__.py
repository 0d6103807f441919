"""Room 1, always on: HTTP and SQL, no tensors.

Takes requests of people, devices and workers; gives answers, jobs and releases.
Does not know how a model is trained or run: workers and endpoints do that.
"""
