"""An engine of sessions in a process of its own, until none is left: ``python -m tests.maintenance.run_engine URL``.

Prints how many statements it has sent, and how often it has taken a step.
"""

import json
import sys
import threading
from collections import Counter

from sqlalchemy import event, text

from labctl import db, queue
from labctl.maintenance import advancing
from labctl.maintenance.engine import Engine
from labctl.settings import MAINTENANCE_REPLIES


def main() -> None:
    """Work until every session has ended."""
    engine = db.configure(sys.argv[1], pool_size=2)
    queue.configure(engine)
    counts: Counter[str] = Counter()
    event.listen(engine, "before_cursor_execute", lambda *arguments: counts.update(["statements"]))
    advance = advancing.advance

    def counted(*arguments: object) -> bool:
        before = counts["statements"]
        again = advance(*arguments)  # type: ignore[arg-type]
        if counts["statements"] > before + 1:
            counts["looks"] += 1
        counts["skipped"] += counts["statements"] == before + 1
        return again

    advancing.advance = counted
    sessions = Engine(MAINTENANCE_REPLIES, poll=0.1)
    sessions.start()
    pause = threading.Event()
    while True:
        with db.reading() as reader:
            if not reader.execute(text("SELECT count(*) FROM maintenance_sessions WHERE due IS NOT NULL")).scalar():
                break
        pause.wait(0.2)
    sessions.stop()
    sessions.join(10)
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
