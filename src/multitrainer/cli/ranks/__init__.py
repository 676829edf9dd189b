"""The processes that train together, called ranks: how they start, what they exchange, and how they end.

Training itself is in ``training``; what rank 0 writes is in ``runs``.
"""
