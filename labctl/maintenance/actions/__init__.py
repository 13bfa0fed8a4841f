"""The actions that come with labctl."""
