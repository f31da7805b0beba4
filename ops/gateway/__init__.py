"""A gateway before the scoring hosts: one description, rendered for Envoy or nginx."""
