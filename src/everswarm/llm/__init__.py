"""Models that answer: one protocol, a client for any OpenAI-compatible endpoint, the embedded llama.cpp, and a fake.

Takes chat payloads in OpenAI's shape; gives answers in OpenAI's shape. Knows nothing of quotas, users or storage.
"""
