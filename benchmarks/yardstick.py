"""What the machine can do at best: bare Pecan handlers over one SQL statement each, as the yardstick of labctl's own.

``/read/KEY`` passes through an answer that lies ready in a row; ``/write/N`` updates one row and commits.
"""

import os
import threading

import pecan
import psycopg2
from pecan import expose

_local = threading.local()


def _cursor(autocommit: bool):  # type: ignore[no-untyped-def]
    """One connection of each kind for each thread: the cheapest pool there is."""
    name = "read" if autocommit else "write"
    if not hasattr(_local, name):
        connection = psycopg2.connect(os.environ["LABCTL_DATABASE_URL"])
        connection.autocommit = autocommit
        setattr(_local, name, connection)
    return getattr(_local, name).cursor()


class Root:
    """The two handlers."""

    @expose(content_type="application/json")
    def read(self, key):  # type: ignore[no-untyped-def]
        """Pass an answer through."""
        with _cursor(True) as cursor:
            cursor.execute("SELECT body FROM benchmark_answers WHERE key = %s", (key,))
            pecan.response.text = cursor.fetchone()[0]
        return pecan.response

    @expose(content_type="application/json")
    def write(self, row):  # type: ignore[no-untyped-def]
        """Update one row and commit."""
        with _cursor(False) as cursor:
            cursor.execute("UPDATE benchmark_rows SET n = n + 1 WHERE id = %s", (int(row),))
            cursor.connection.commit()
        pecan.response.text = "{}"
        return pecan.response


app = pecan.make_app(Root(), force_canonical=False)
