"""A federation as a service: the coordinator's jobs, what its operator may ask, what monitoring reads; and a client's node."""
