"""slo-opt inside Ray Serve LLM: its routing policies, its scheduler in each replica, its word on how many there are.

`alpha` is the only module that knows Ray.
"""
