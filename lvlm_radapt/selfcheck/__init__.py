"""`lvlm-radapt check`: does this package do with a user's own model what transformers does, and what it promises?

A file a group of checks; each gives `Check`s: pass, fail or skipped, with the number behind it.
"""
