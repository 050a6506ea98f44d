"""The reference sandbox: one container with an X and VNC server, noVNC and an automation node."""
