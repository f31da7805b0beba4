"""Bundles: a model ready to serve, in one folder. Build, check and load bundles."""
