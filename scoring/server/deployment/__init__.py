"""What a host serves: the deployment file, the releases that it names, and the supervisor's half of a swap."""
