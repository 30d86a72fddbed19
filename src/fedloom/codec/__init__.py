"""The wire format, and the count of its bytes."""
