"""The user's machine. Takes releases from the server, answers offline, gives judgements back when there is a line.

Does not know torch, SQL servers or how a model was made; the state of a device is one folder.
"""
