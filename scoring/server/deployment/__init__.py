"""The releases that a host serves: the deployment file, its releases, and the supervisor's half of a swap."""
