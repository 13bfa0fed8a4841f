"""Built package repositories, the builds they come from, and the search over them, as chacra and build jobs report.

A repo is a directory of packages on a storage node, known by its ``chacra_url``: the packages of one commit (``sha1``)
of a branch or tag (``ref``) of a project, in one flavor, for one version of a distribution and some architectures. Its
status is a word of its node's (requested, queued, building, ready, failed), each change of which is kept; posted as
``deleted``, it is gone. A build is a job of a build farm that makes such packages. The protocol is shaman's.
"""
