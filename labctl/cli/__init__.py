"""The ``labctl`` command: one module per noun."""
