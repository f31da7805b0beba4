"""Real services for the tests: fetched once, started by the tests on free ports, stopped with them."""
