"""The core: events in, decisions out. It decides; it never waits, reads a clock or touches a socket."""
