"""Compare models by a protocol of training, waiting and testing."""
