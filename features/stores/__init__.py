"""Stores of profiles: one interface, with implementations in memory, in LMDB and in Aerospike."""
