"""Seeded payments, hosts and bundles that several benchmarks share."""
