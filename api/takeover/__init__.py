"""Takeover: an operator's hands on a desktop, through a short-lived session (protocol section 9)."""
