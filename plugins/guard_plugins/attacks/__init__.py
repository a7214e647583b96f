"""The attacks that ship."""
