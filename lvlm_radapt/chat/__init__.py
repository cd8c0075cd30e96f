"""The chat: a session's state, its commands, what it keeps, and around it the terminal or a page in the browser."""
