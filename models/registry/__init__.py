"""The registry of models: the known bundles and policies, and who let which of them decide."""
