"""The engine that stream, training, replay and scoring call, and the parts that it is compiled from."""
