"""The live gateway: everything that touches sockets, clocks and the event loop."""
