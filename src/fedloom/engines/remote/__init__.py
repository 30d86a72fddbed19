"""A federation between organisations: a coordinator, resident clients, and a broker that both dial out to."""
