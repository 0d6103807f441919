"""The outermost layer of the server: what every request and every error passes, whatever the room.

Takes errors and bodies; gives problem details, refusals and headers. Knows no room.
"""
