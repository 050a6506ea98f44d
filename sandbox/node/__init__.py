"""The automation node: proves its key to a gateway and carries out desktop tasks (node-protocol.md)."""
