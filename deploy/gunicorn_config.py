"""gunicorn in production, behind nginx: what labctl.gunicorn_config says, and what only holds here."""

import os

from labctl.gunicorn_config import *  # noqa: F403

# nginx, on the same host, is the only client: whoever can connect may set X-Forwarded-*.
bind = os.environ.get("LABCTL_BIND", "127.0.0.1:8080")
forwarded_allow_ips = "127.0.0.1,::1"
# gunicorn touches a file to show that a worker lives; on a disk that write can wait for other writes.
worker_tmp_dir = "/dev/shm"  # noqa: S108
