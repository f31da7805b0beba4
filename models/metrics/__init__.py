"""How good decisions are: areas, curves, costs, segments and comparisons. Values in, values out."""
