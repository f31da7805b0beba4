"""Challengers in the shadow: they decide about live payments after the caller has the answer."""
