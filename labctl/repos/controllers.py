"""``/api/repos``, ``/api/builds`` and ``/api/search``."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal
from urllib.parse import quote

import orjson

from labctl.db import reading, transaction
from labctl.errors import Exhausted, Invalid, NotFound
from labctl.http import body, paging, render
from labctl.http.resource import Mount, Request, Resource
from labctl.http.waiting import Glance, Waiting
from labctl.paging import Listed, Page
from labctl.repos import distros, queries, search, service, wire
from labctl.repos.queries import LATEST, Place
from labctl.settings import Settings

#: What may be redirected to; storage nodes may post other URLs, or none.
WEB = ("https://", "http://")


class ReposController(Resource):
    """All projects, with what there is of each."""

    def __init__(self, settings: Settings, mount: Mount) -> None:
        """Take what applies to this mount."""
        self.settings = settings
        self.mount = mount

    def item(self, segment: str) -> Resource | None:
        """The repos of a project."""
        return ProjectReposController(self.settings, segment)

    def get(self, request: Request) -> Any:
        """List the projects, each with its refs and commits."""
        with reading() as session:
            found = queries.all_repos(session)
        projects = (f'{_json(name)}:{{"refs":{refs},"sha1s":{sha1s}}}' for name, refs, sha1s in found)
        return render.Text(f"{{{','.join(projects)}}}")


class ProjectReposController(Resource):
    """The repos of a project."""

    def __init__(self, settings: Settings, project: str) -> None:
        """Note the name; the project is looked for by the methods."""
        self.settings = settings
        self.project = project

    def item(self, segment: str) -> Resource | None:
        """The repos of a ref."""
        return RefReposController(self.settings, self.project, segment)

    def get(self, request: Request) -> Any:
        """List the refs."""
        return list_refs(self.project, "repos")

    def post(self, request: Request) -> Any:
        """Add a repo, or change what is sent of the one with that ``chacra_url``."""
        project = wire.project_from_wire(self.project)
        data = body.read_object(request, self.settings.max_body)
        report = wire.repo_from_wire(body.parse(wire.RepoInput, data))
        with transaction(request.actor()) as session:
            service.post_repo(session, project, report)
        return {}


class RefReposController(Resource):
    """The repos of a branch or tag."""

    def __init__(self, settings: Settings, project: str, ref: str) -> None:
        """Note the names."""
        self.settings = settings
        self.project = project
        self.ref = ref

    def item(self, segment: str) -> Resource | None:
        """The repos of a commit, or of ``latest``."""
        return CommitReposController(self.settings, Place(self.project, self.ref, segment))

    def get(self, request: Request) -> Any:
        """List the commits, the last posted first."""
        return list_commits(request, self.settings, self.project, self.ref, "repos")


class CommitReposController(Resource):
    """The repos of a commit."""

    #: What is listed here.
    column = "distro"

    def __init__(self, settings: Settings, place: Place) -> None:
        """Note what the path has named."""
        self.settings = settings
        self.place = place

    def item(self, segment: str) -> Resource | None:
        """The repos for a distribution."""
        return DistroReposController(self.settings, replace(self.place, distro=segment))

    def get(self, request: Request) -> Any:
        """List the distributions, further down their versions."""
        with reading() as session:
            found = queries.values(session, self.place, self.column)
            return found if found else nothing(session, self.place)


class DistroReposController(CommitReposController):
    """The repos for a distribution."""

    column = "version"

    def item(self, segment: str) -> Resource | None:
        """The repos for a version, named by its number or its codename, of the default flavor."""
        assert self.place.distro is not None
        platform = distros.resolve(self.place.distro, segment).platform
        return VersionController(self.settings, replace(self.place, platform=platform))


class LeafController(Resource):
    """The repos of a commit for a version of a distribution in one flavor."""

    def __init__(self, settings: Settings, place: Place) -> None:
        """Note what the path has named; the flavor is the default one if it has not named any."""
        self.settings = settings
        self.place = place if place.flavor is not None else replace(place, flavor=service.DEFAULT_FLAVOR)

    @property
    def children(self) -> Mapping[str, Resource]:  # type: ignore[override]
        """Where the newest ready one of them is described."""
        return {"repo": RepoFileController(self.place)}

    def item(self, segment: str) -> Resource | None:
        """The packages of the newest ready one of them for an architecture."""
        return PackagesController(self.place, segment, ())

    def get(self, request: Request) -> Any:
        """List the repos, the last modified first."""
        page = paging.page_of(request, self.settings)
        history = body.flag(request, "history") or False
        with reading() as session:
            found = queries.repos_at(session, self.place, page, history=history)
            if not found:
                return nothing(session, self.place, page)
        answer = answer_listed(request, page, found)
        if self.place.sha1 == LATEST and "Link" in answer.headers:
            # The next part is of the same commit, even if there is a newer one by then.
            sha1 = orjson.loads(found.documents[0])["sha1"]
            answer.headers["Link"] = at_commit(request, answer.headers["Link"], sha1)
        return answer

    def delete(self, request: Request) -> Any:
        """Remove the repos."""
        if self.place.sha1 == LATEST:
            raise Invalid(f"name the commit to remove its repos: {LATEST} may be another one by now", field="sha1")
        place = self.place
        assert place.platform is not None and place.flavor is not None
        leaf = service.Leaf(place.project, place.ref, place.sha1, place.platform, place.flavor)
        with transaction(request.actor()) as session:
            service.remove_repos(session, leaf)
        return {}


class VersionController(LeafController):
    """The repos of the default flavor, and the way to the others."""

    def __init__(self, settings: Settings, place: Place) -> None:
        """Note what the path has named."""
        super().__init__(settings, place)
        self.of_any_flavor = place

    @property
    def children(self) -> Mapping[str, Resource]:  # type: ignore[override]
        """Where the newest ready one is described, and the flavors."""
        return {**super().children, "flavors": FlavorsController(self.settings, self.of_any_flavor)}


class FlavorsController(CommitReposController):
    """The flavors that there are repos of."""

    column = "flavor"

    def item(self, segment: str) -> Resource | None:
        """The repos of a flavor."""
        return LeafController(self.settings, replace(self.place, flavor=segment))


class RepoFileController(Resource):
    """The file by which a package manager finds the newest ready repo of a leaf; it is on the storage node."""

    def __init__(self, place: Place) -> None:
        """Note what the path has named."""
        self.place = place

    def get(self, request: Request) -> Any:
        """Send the client to the file; ``arch=`` chooses a repo that has it."""
        url = ready(self.place, body.text(request, "arch"), "node_url")
        return render.redirect(f"{url.rstrip('/')}/repo")


class PackagesController(Resource):
    """The packages of the newest ready repo of a leaf that has an architecture: the path behind it is within them."""

    def __init__(self, place: Place, arch: str, path: tuple[str, ...]) -> None:
        """Note what the path has named."""
        self.place = place
        self.arch = arch
        self.path = path

    def item(self, segment: str) -> Resource | None:
        """A file or directory among the packages."""
        # Nobody is led out of them.
        return None if segment in (".", "..") else PackagesController(self.place, self.arch, (*self.path, segment))

    def get(self, request: Request) -> Any:
        """Send the client there; the architecture chooses the repo, and is no part of the path there."""
        url = ready(self.place, self.arch, "url")
        if not self.path:
            return render.redirect(url)
        end = "/" if request.own_url().endswith("/") else ""
        return render.redirect(f"{url.rstrip('/')}/{'/'.join(quote(name, safe='') for name in self.path)}{end}")


class BuildsController(Resource):
    """The builds of all projects."""

    def __init__(self, settings: Settings, mount: Mount) -> None:
        """Take what applies to this mount."""
        self.settings = settings
        self.mount = mount

    def item(self, segment: str) -> Resource | None:
        """The builds of a project."""
        return ProjectBuildsController(self.settings, segment)

    def get(self, request: Request) -> Any:
        """List the projects, each with the refs that have builds."""
        with reading() as session:
            found = queries.all_builds(session)
        return render.Text(f"{{{','.join(f'{_json(name)}:{refs}' for name, refs in found)}}}")


class ProjectBuildsController(Resource):
    """The builds of a project."""

    def __init__(self, settings: Settings, project: str) -> None:
        """Note the name; the project is looked for by the methods."""
        self.settings = settings
        self.project = project

    def item(self, segment: str) -> Resource | None:
        """The builds of a ref."""
        return RefBuildsController(self.settings, self.project, segment)

    def get(self, request: Request) -> Any:
        """List the refs."""
        return list_refs(self.project, "builds")

    def post(self, request: Request) -> Any:
        """Add a build, or change it."""
        project = wire.project_from_wire(self.project)
        data = body.read_object(request, self.settings.max_body)
        report = wire.build_from_wire(body.parse(wire.BuildInput, data))
        with transaction(request.actor()) as session:
            service.post_build(session, project, report)
        return {}


class RefBuildsController(Resource):
    """The builds of a branch or tag."""

    def __init__(self, settings: Settings, project: str, ref: str) -> None:
        """Note the names."""
        self.settings = settings
        self.project = project
        self.ref = ref

    def item(self, segment: str) -> Resource | None:
        """The builds of a commit."""
        return CommitBuildsController(self.settings, self.project, self.ref, segment)

    def get(self, request: Request) -> Any:
        """List the commits, the last posted first."""
        return list_commits(request, self.settings, self.project, self.ref, "builds")


class CommitBuildsController(Resource):
    """The builds of a commit."""

    def __init__(self, settings: Settings, project: str, ref: str, sha1: str) -> None:
        """Note the names."""
        self.settings = settings
        self.project = project
        self.ref = ref
        self.sha1 = sha1

    def get(self, request: Request) -> Any:
        """List the builds, the last modified first."""
        page = paging.page_of(request, self.settings)
        history = body.flag(request, "history") or False
        with reading() as session:
            found = queries.builds(session, self.project, self.ref, self.sha1, page, history=history)
            if not found:
                check_project(session, self.project)
        return answer_listed(request, page, found)


class SearchController(Resource):
    """The search over all repos."""

    PARAMETERS = ("project", "distros", "ref", "sha1", "flavor", "status", "count", "page", "after", "wait", "history")

    def __init__(self, settings: Settings, mount: Mount, waiting: Waiting) -> None:
        """Take what applies to this mount, and the places for requests that wait."""
        self.settings = settings
        self.mount = mount
        self.waiting = waiting
        self.glance = Glance(self._newest)

    def _newest(self) -> Any:
        with reading() as session:
            return search.newest(session)

    def get(self, request: Request) -> Any:
        """List the repos that fit; with ``wait=SECONDS``, as soon as there is one."""
        for name in request.query:
            if name not in self.PARAMETERS:
                raise Invalid(f"there is no such parameter; there are {', '.join(self.PARAMETERS)}", field=name)
        page = paging.page_of(request, self.settings)
        history = body.flag(request, "history") or False
        given = {name: text for name in request.query if (text := body.text(request, name)) is not None}
        wants_latest = given.get("sha1") == LATEST
        if wants_latest:
            del given["sha1"]
        wanted = wire.search_from_wire(given)

        def find() -> search.Latest:
            with reading() as session:
                if wants_latest:
                    return search.latest(session, wanted, page, history=history)
                return search.Latest(search.find(session, wanted, page, history=history), None)

        found = self.waiting.until(find, request, self.glance)
        # One repo for each distribution is the whole list.
        ends = wants_latest and bool(wanted.wanted)
        following = None if ends else _next_url(request, page, found)
        return render.with_next(render.as_list(found.listed.documents), following)


def _next_url(request: Request, page: Page, found: search.Latest) -> str | None:
    # The next part is of the same commit, even if there is a newer one by then.
    pinned = {} if found.sha1 is None else {"sha1": found.sha1}
    return paging.next_url(request, page, len(found.listed.documents), found.listed.last, **pinned)


def list_refs(project: str, having: str) -> list[str]:
    """List the refs of a project that have repos or builds; raises NotFound."""
    with reading() as session:
        found = queries.refs(session, project, having)
        if not found:
            check_project(session, project)
        return found


def list_commits(request: Request, settings: Settings, project: str, ref: str, having: str) -> Any:
    """List the commits of a ref that have repos or builds, all of them unless ``count`` says otherwise."""
    count = body.integer(request, "count", settings.max_count, least=1, most=settings.max_count)
    before = body.integer(request, "after", None, least=0, most=2**63 - 1)
    assert count is not None
    with reading() as session:
        found = queries.commits(session, project, ref, having, count, before)
        if not found.sha1s:
            check_project(session, project)
    full = len(found.sha1s) == count
    return render.with_next(found.sha1s, paging.url_with(request, after=str(found.last)) if full else None)


def answer_listed(request: Request, page: Page, found: Listed) -> Any:
    """Answer part of a list, with the way to the next part."""
    following = paging.next_url(request, page, len(found.documents), found.last)
    return render.with_next(render.as_list(found.documents), following)


def at_commit(request: Request, url: str, sha1: str) -> str:
    """Name a commit in a URL of repos, where ``latest`` stands: it is the third segment below the tree."""
    segments = url.split("/")
    segments[request.base_url().count("/") + 3] = quote(sha1, safe="")
    return "/".join(segments)


def nothing(session: Any, place: Place, page: Page | None = None) -> Any:
    """Answer for a place where nothing was found; raises NotFound, or Exhausted if the latest commit was meant."""
    check_project(session, place.project)
    # Behind the end of a list is nothing, whatever is ready.
    if place.sha1 == LATEST and not (page and any(page.kind())):
        raise Exhausted(not_ready(place))
    return []


def ready(place: Place, arch: str | None, which: Literal["node_url", "url"]) -> str:
    """Find a URL of the newest ready repo, of its page on its storage node or of its packages.

    Raises NotFound for an unknown project, else Exhausted if there is no repo, or its URL is none to be sent to.
    """
    with reading() as session:
        found = queries.ready(session, place, arch)
        if found is None:
            check_project(session, place.project)
    url: str = getattr(found, which, "")
    if not url.startswith(WEB):
        raise Exhausted(not_ready(place, arch))
    return url


def not_ready(place: Place, arch: str | None = None) -> str:
    """Say what is missing; the beginning is what build jobs have always seen."""
    more = {"commit": place.sha1, "distribution": place.platform or place.distro, "flavor": place.flavor, "arch": arch}
    told = ", ".join(f"{name} {value}" for name, value in more.items() if value is not None)
    return f"no repository is ready for: {place.project}/{place.ref} ({told})"


def check_project(session: Any, name: str) -> None:
    """Raise NotFound if there is no such project."""
    if not queries.is_project(session, name):
        raise NotFound(f"there is no project {name}")


def _json(text: str) -> str:
    return render.dumps(text).decode()
