"""A deterministic simulator of a whole host: many processes in one, on virtual time, with faults, from one seed.

    python -m tests.simulation --seeds 1000 --minutes 5

docs/internals/simulation.md explains it. Read world.py first, then run.py.
"""
