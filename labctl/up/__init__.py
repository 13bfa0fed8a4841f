"""``labctl up``: the database, the web server and the worker as children of one process, and nothing left behind."""
