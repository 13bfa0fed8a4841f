"""VMs out of warm pools: made ahead, given out in milliseconds, and destroyed when their time is over.

A pool keeps a number of VMs ready. A VM is requested, cloned and booted by the engine (a thread of the worker), waits
ready in its pool, is checked out by somebody (running), and is completed: by its user, or when its lifetime ends. Then
the engine destroys it; what is known of it is kept for a while. An on-demand request has VMs made for it beyond the
pool's size. What makes and destroys VMs is a provider, a plugin. The protocol is vmpooler's.
"""
