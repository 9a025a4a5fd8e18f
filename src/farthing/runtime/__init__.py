"""The whole server without a socket: models and their states, inference, loading, status."""
