"""The task plugins that come with labctl."""
