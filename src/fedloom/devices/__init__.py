"""What clients run on: how fast they compute and send, and when they are online."""
