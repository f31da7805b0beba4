"""What a process says about itself over HTTP."""
