"""The defenses that ship."""
