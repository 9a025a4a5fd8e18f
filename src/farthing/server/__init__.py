"""Sockets, routes, auth, admission, health and drain: the runtime behind a port."""
