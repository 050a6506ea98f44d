"""RFB, the protocol of VNC, as far as the takeover proxy speaks it (RFC 6143, and the community's extensions)."""
