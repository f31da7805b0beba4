"""Records of a topic counted partition by partition, with the state in the store."""
