"""The admin API and the takeover proxy, over real sockets."""
