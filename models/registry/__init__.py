"""The registry of models: which bundles and policies there are, and who let which of them decide."""
