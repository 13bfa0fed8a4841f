"""labctl runs a test lab: one WSGI application over one PostgreSQL schema.

Start at :mod:`labctl.root`, the table of contents: every URL tree, the domain that serves it and the protocol it
speaks. Each domain (``runs``, ``machines``, ``tokens``, ...) has the same rooms: ``models`` (tables), ``states``,
``service`` (the verbs), ``queries`` (long reads), ``wire`` (JSON shapes), ``controllers`` (URLs), ``tasks``
(background work). The kit they stand on is flat in this package (``db``, ``errors``, ``settings``, ``queue``, ...)
and in ``http/``, the only place that knows Pecan.
"""

__version__ = "0.1.0"
