"""The executors that come with labctl."""
