"""The terminal chat: a session's state, its commands, what it keeps, and the terminal around it."""
