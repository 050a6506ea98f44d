"""Routers of the admin API, one per kind of thing."""
