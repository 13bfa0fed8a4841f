"""Test runs and their jobs.

Speaks the protocol of paddles (teuthology's ``results_server``, pulpito). A run is a name; its status and counts follow
from its jobs and are right in the same instant a job changes. A job is reported (once for each run and job id), waits
in a queue, may be claimed by a dispatcher for a while, runs, and passes, fails or dies.

What a run or a job looks like on the wire is kept as a document beside the columns that are searched: it is read far
more often than written.
"""
