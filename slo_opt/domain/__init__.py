"""The model of the engine, the requests and their SLOs, shared by solvers, simulator and live scheduler.

Standard library and numpy only.
"""
