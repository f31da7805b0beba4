"""The profile store on Aerospike."""
