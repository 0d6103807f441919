"""Read-only views across the rooms: how the server is, how much there is, and what to do next.

Takes what the other rooms know; changes nothing. Nothing below imports it.
"""
