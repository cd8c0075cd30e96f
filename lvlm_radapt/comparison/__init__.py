"""Tables of many defences under the same attacks: a leaf, which only the command line imports."""
