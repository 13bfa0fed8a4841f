"""What gunicorn loads: ``gunicorn labctl.wsgi:app``."""

from labctl import logs
from labctl.app import serve
from labctl.settings import load

settings = load()
logs.setup(settings)
app = serve(settings)
