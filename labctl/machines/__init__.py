"""Lab machines: which there are, and which is locked by whom, why and since when.

Speaks the protocol of paddles' nodes (teuthology's ``lock_server``). A machine is up or not; one that is up and
unlocked may be locked, by name or as any of its type; whoever locked it unlocks it. A machine that a job's targets
name and nobody registered is added, but down, so that nobody is given it.
"""
