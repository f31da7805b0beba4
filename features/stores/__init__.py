"""Where profiles are kept: one port, with implementations in memory, in LMDB and in Aerospike."""
