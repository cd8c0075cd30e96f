"""The search for a hardened model: candidates, their choice on one part of the data, the verdict on another."""
