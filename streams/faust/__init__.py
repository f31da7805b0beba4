"""The Faust app of `paywarden stream`, and everything that knows Faust."""
