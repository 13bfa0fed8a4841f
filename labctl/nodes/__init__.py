"""Storage nodes, where repos are kept, in rotation: whoever has built something asks for the next node to put it on.

A node registers itself, and is asked over HTTPS whether it is healthy: whenever it registers again, before it is given
out, and every few seconds by a background task. A node whose check fails ``health_check_retries`` times in a row is
left out until a check of the task, or of its own registering, finds it well. The protocol is shaman's.
"""
