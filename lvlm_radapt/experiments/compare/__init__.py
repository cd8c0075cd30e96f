"""Tables of many defences under the same attacks."""
