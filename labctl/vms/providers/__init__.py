"""The providers that come with labctl."""
