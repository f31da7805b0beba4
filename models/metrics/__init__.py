"""Measure decisions: areas under curves, costs, segments and comparisons. Pure functions of columns."""
