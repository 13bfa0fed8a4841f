"""Maintenance sessions: hosts that are walked through upkeep in turn, without hurting those who use them.

A session has hosts, actions, and projects (the owners of what runs on the hosts) that are told and asked. A workflow (a
plugin) decides what comes next; every step is one short transaction, so that a session goes on wherever it was when
a worker is killed. The protocol is that of fenix.
"""
