"""How the models answer one request: the `/v1` routes of the OpenAI protocol, and the choice of who answers.

Takes chat payloads of people and devices; gives answers, and stores each as an interaction.
Does not know how an endpoint is reached.
"""
