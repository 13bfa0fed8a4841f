"""The workflows that come with labctl."""
