"""Products and threads, the fastest way on the machine at hand."""
