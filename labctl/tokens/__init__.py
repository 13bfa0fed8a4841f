"""Users, their tokens, and who may do what: one set of credentials for every tree.

A user has a password (kept as an argon2 hash) and rights; a right is the name of a tree, an admin has them all. A token
is a random secret of one user, shown once and stored hashed, perhaps with fewer rights (its scopes) and an end. A
user's password may be in LDAP instead; wrong ones are slowed down. Users make tokens over HTTP as vmpooler has it.
"""
