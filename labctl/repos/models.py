"""The tables of projects, commits, repos and builds, and of what statuses these had."""

from datetime import datetime

from sqlalchemy import (
    DDL,
    BigInteger,
    CheckConstraint,
    Computed,
    DateTime,
    ForeignKey,
    Index,
    Text,
    UniqueConstraint,
    event,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from labctl.db import Base

#: A repo and a build as clients see them: they are read far more often than posted.
DOCUMENTS = DDL(  # type: ignore[no-untyped-call]
    """
CREATE OR REPLACE FUNCTION labctl_repo_document(
    url text, node_url text, ref text, sha1 text, distro text, distro_version text, distro_codename text,
    modified timestamptz, status text, flavor text, project text, archs text[], extra text
) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    RETURN '{"url":' || to_json(url) || ',"chacra_url":' || to_json(node_url) || ',"ref":' || to_json(ref)
        || ',"sha1":' || to_json(sha1) || ',"distro":' || to_json(distro)
        || ',"distro_version":' || coalesce(to_json(distro_version)::text, 'null')
        || ',"distro_codename":' || coalesce(to_json(distro_codename)::text, 'null')
        || ',"modified":"' || to_char(modified AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || '+00:00"'
        || ',"status":' || to_json(status) || ',"flavor":' || to_json(flavor) || ',"project":' || to_json(project)
        || ',"archs":' || to_json(archs) || ',"extra":' || extra || '}';
END $$;
CREATE OR REPLACE FUNCTION labctl_build_document(
    url text, log_url text, ref text, sha1 text, flavor text, status text, extra text, modified timestamptz,
    started timestamptz, completed timestamptz, project text, distro text, distro_version text, distro_codename text,
    distro_arch text
) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    RETURN '{"url":' || to_json(url) || ',"log_url":' || coalesce(to_json(log_url)::text, 'null')
        || ',"ref":' || to_json(ref) || ',"sha1":' || to_json(sha1) || ',"flavor":' || to_json(flavor)
        || ',"status":' || to_json(status) || ',"extra":' || extra
        || ',"modified":"' || to_char(modified AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || '+00:00"'
        || ',"started":"' || to_char(started AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || '+00:00"'
        || ',"completed":'
        || coalesce('"' || to_char(completed AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || '+00:00"', 'null')
        || ',"project":' || to_json(project) || ',"distro":' || coalesce(to_json(distro)::text, 'null')
        || ',"distro_version":' || coalesce(to_json(distro_version)::text, 'null')
        || ',"distro_codename":' || coalesce(to_json(distro_codename)::text, 'null')
        || ',"distro_arch":' || coalesce(to_json(distro_arch)::text, 'null') || '}';
END $$
"""
)


class Project(Base):
    """A project that a repo or a build was posted for; it stays when they go, so nothing needs to refer to it."""

    __tablename__ = "projects"

    name: Mapped[str] = mapped_column(Text, primary_key=True)


class Commit(Base):
    """A commit of a ref with the numbers of its repos and builds, so that lists of refs and commits need not count.

    The numbers change in the statement that adds or removes a repo or a build.
    """

    __tablename__ = "commits"
    __table_args__ = (
        UniqueConstraint("project", "ref", "sha1"),
        Index("ix_commits_project_ref_id", "project", "ref", "id"),
        CheckConstraint("repos >= 0 AND builds >= 0", name="counts"),
    )

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    project: Mapped[str] = mapped_column(Text)
    ref: Mapped[str] = mapped_column(Text)
    sha1: Mapped[str] = mapped_column(Text)
    repos: Mapped[int] = mapped_column(server_default="0")
    builds: Mapped[int] = mapped_column(server_default="0")


class Repo(Base):
    """One repository of packages."""

    __tablename__ = "repos"
    __table_args__ = (
        # Searches go along these, from the newest on, by what they ask for.
        Index("ix_repos_project_ref_platform_modified", "project", "ref", "platform", "modified", "id"),
        Index("ix_repos_project_ref_modified", "project", "ref", "modified", "id"),
        Index("ix_repos_project_platform_modified", "project", "platform", "modified", "id"),
        Index("ix_repos_project_modified", "project", "modified", "id"),
        Index("ix_repos_modified", "modified", "id"),
        # One commit has some dozens of repos. All that is asked of it together is in one index: the planner, which does
        # not know the size of a ref, would else intersect this one with all of the ref, or walk through all of the ref
        # where that saves sorting some dozens.
        Index("ix_repos_sha1_platform_ref_project_modified", "sha1", "platform", "ref", "project", "modified", "id"),
    )

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    #: Where it is described on its storage node (``chacra_url``).
    node_url: Mapped[str] = mapped_column(Text, unique=True)
    project: Mapped[str] = mapped_column(Text)
    ref: Mapped[str] = mapped_column(Text)
    sha1: Mapped[str] = mapped_column(Text)
    flavor: Mapped[str] = mapped_column(Text)
    #: The distribution, as it was posted.
    distro: Mapped[str] = mapped_column(Text)
    #: Its version, as it was posted: a number or a codename.
    version: Mapped[str] = mapped_column(Text)
    distro_version: Mapped[str | None] = mapped_column(Text)
    distro_codename: Mapped[str | None] = mapped_column(Text)
    #: The distribution and its version, the same however they were spelled: see labctl.repos.distros.
    platform: Mapped[str] = mapped_column(Text)
    url: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(Text)
    archs: Mapped[list[str]] = mapped_column(ARRAY(Text))
    #: A JSON object.
    extra: Mapped[str] = mapped_column(Text)
    modified: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    #: How often the status has changed: the number of the last of :class:`RepoStatusChange`.
    changes: Mapped[int] = mapped_column(server_default="0")
    document: Mapped[str] = mapped_column(
        Text,
        Computed(
            "labctl_repo_document(url, node_url, ref, sha1, distro, distro_version, distro_codename, modified, "
            "status, flavor, project, archs, extra)",
            persisted=True,
        ),
    )


class RepoStatusChange(Base):
    """A status that a repo has had, since when."""

    __tablename__ = "repo_statuses"

    repo_id: Mapped[int] = mapped_column(ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(Text)
    at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


class Build(Base):
    """One build."""

    __tablename__ = "builds"
    __table_args__ = (Index("ix_builds_project_ref_sha1_modified", "project", "ref", "sha1", "modified", "id"),)

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    project: Mapped[str] = mapped_column(Text)
    ref: Mapped[str] = mapped_column(Text)
    sha1: Mapped[str] = mapped_column(Text)
    flavor: Mapped[str] = mapped_column(Text)
    distro: Mapped[str | None] = mapped_column(Text)
    distro_version: Mapped[str | None] = mapped_column(Text)
    distro_codename: Mapped[str | None] = mapped_column(Text)
    distro_arch: Mapped[str | None] = mapped_column(Text)
    #: As of a repo; empty for a build of no distribution.
    platform: Mapped[str] = mapped_column(Text)
    url: Mapped[str] = mapped_column(Text)
    log_url: Mapped[str | None] = mapped_column(Text)
    status: Mapped[str] = mapped_column(Text)
    #: A JSON object.
    extra: Mapped[str] = mapped_column(Text)
    modified: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    started: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    completed: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    changes: Mapped[int] = mapped_column(server_default="0")
    document: Mapped[str] = mapped_column(
        Text,
        Computed(
            "labctl_build_document(url, log_url, ref, sha1, flavor, status, extra, modified, started, completed, "
            "project, distro, distro_version, distro_codename, distro_arch)",
            persisted=True,
        ),
    )


class BuildStatusChange(Base):
    """A status that a build has had, since when."""

    __tablename__ = "build_statuses"

    build_id: Mapped[int] = mapped_column(ForeignKey("builds.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(Text)
    at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


event.listen(Repo.__table__, "before_create", DOCUMENTS)
event.listen(Build.__table__, "before_create", DOCUMENTS)
