"""Operations on lab hosts: jobs, the hosts each of them is for, their output in order, and who asked.

A job is queued by a request, taken by one worker, which has an executor (a plugin) carry it out, and ends done, failed
or cancelled. Its output is there while it goes on. The protocol is that of EXEd.
"""
