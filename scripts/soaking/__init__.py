"""Random graphs, interrupts and long queues against a real server."""
