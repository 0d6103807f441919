"""What models may have done for them: built in, or by servers that speak the Model Context Protocol.

Takes calls that a model made; gives text, fenced as data. A result can change nothing: neither who answers, nor the
system prompt, nor which tools there are.
"""
