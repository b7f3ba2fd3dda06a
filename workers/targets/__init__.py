"""The targets that come with Punctual: one file each, found by their name."""
