"""The engine that stream, training, replay and scoring call, and what it is compiled from."""
