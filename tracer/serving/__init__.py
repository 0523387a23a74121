"""What answers others: the viewer's server (loopback only, one token) and tools for agents."""
