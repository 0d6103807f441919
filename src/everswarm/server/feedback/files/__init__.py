"""Files of feedback, in and out: our JSON lines, and the formats of others.

Takes files of any size, line by line, and says what is wrong with which line; gives files that are whole or not there.
Knows no HTTP.
"""
