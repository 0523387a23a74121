"""The viewer's server: loopback only, one token, the folders it was given and nothing else."""
