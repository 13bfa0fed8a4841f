"""The log of what happened: one row per change that somebody may ask about, written in the change's own transaction.

An event has a kind (``job.updated``), a subject (``runs/NAME/jobs/ID``), an actor, the id of the request, and data.
Its sequence number is made of the transaction's id and a counter within the transaction, so that the order of the
numbers is an order in which readers can follow: see :func:`labctl.events.queries.after`.
"""
