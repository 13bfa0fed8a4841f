"""The queues that jobs of test runs wait in, and the dispatchers that take them out (not labctl's own task queue).

Speaks the protocol of paddles' queues. A queue has a name, by custom that of a machine type, and may be paused for a
while. A dispatcher looks at the next job and says itself that it runs, or, better, claims it: the job waits for that
dispatcher under a lease, which heartbeats keep alive, and is queued again when the dispatcher falls silent.
"""
