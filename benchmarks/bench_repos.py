"""Measure repos, builds and the search against the yardstick: ``python benchmarks/bench_repos.py --repos 50000``.

Loads REPOS repos, ten for each commit (and an eleventh), a hundredth as many refs, a fifth of all on the ref ``main``; see
benchmarks/harness.py. Prints for each main read and write the requests per second, p50, p99, SQL statements, and the
ratio to its yardstick.
"""

import argparse
import base64
import hashlib
import json
from collections.abc import Iterator

from benchmarks.harness import Case, database, load, measure

PAIR = {"api_user": "chacra", "api_key": "secret"}
URL = "https://chacra.example.com/{}/ceph/{}/{}/{}/flavors/{}/"

#: Commit c is on main if c % 26 < 5; its ten repos are for five distributions in two flavors.
LOAD = """
INSERT INTO repos (project, ref, sha1, flavor, distro, version, distro_version, distro_codename, platform, status,
    archs, extra, modified, url, node_url)
SELECT 'ceph', ref, sha1, flavor, distro, version, number, codename, distro || '/' || number,
    CASE WHEN (c * 10 + place + length(flavor)) % 20 = 0 THEN 'failed' WHEN c > :commits - 20 THEN 'building' ELSE 'ready' END,
    CASE WHEN place % 2 = 1 THEN ARRAY['x86_64', 'source'] ELSE ARRAY['x86_64', 'arm64', 'source'] END,
    '{"version":"19.2.0-1-g' || left(sha1, 8) || '","package_manager_version":"19.2.0-1","build_url":"https://jenkins.'
        || 'example.com/job/ceph-dev-build/' || c || '/","root_build_cause":"SCMTRIGGER","node_name":"irvingi01"}',
    now() - (:commits - c) * interval '1 minute' + (place * 2 + length(flavor) / 7) * interval '1 second',
    format('https://chacra.example.com/r/ceph/%s/%s/%s/%s/flavors/%s/', ref, sha1, distro, version, flavor),
    format('https://chacra.example.com/repos/ceph/%s/%s/%s/%s/flavors/%s/', ref, sha1, distro, version, flavor)
FROM generate_series(:first, :last) c,
    LATERAL (SELECT CASE WHEN c % 26 < 5 THEN 'main' ELSE 'wip-' || c % :refs END AS ref,
        md5(c::text) || 'deadbeef' AS sha1) commits,
    (VALUES (1, 'ubuntu', 'jammy', '22.04', 'jammy'), (2, 'ubuntu', 'noble', '24.04', 'noble'),
        (3, 'centos', '9', '9', NULL), (4, 'rocky', '10', '10', NULL), (5, 'debian', 'bookworm', '12', 'bookworm')
    ) distros (place, distro, version, number, codename),
    (VALUES ('default'), ('crimson-debug')) flavors (flavor)
ORDER BY c, place, flavor
"""
#: Half of the commits are for one more distribution, the others for another.
LOAD_APART = """
INSERT INTO repos (project, ref, sha1, flavor, distro, version, distro_version, distro_codename, platform, status,
    archs, extra, modified, url, node_url)
SELECT project, ref, sha1, flavor, distro, version, distro_version, NULL, platform, status, archs, extra,
    modified + interval '1 second', url || 'apart/', node_url || 'apart/'
FROM (
    SELECT project, ref, sha1, flavor, 'centos' AS distro, v AS version, v AS distro_version, 'centos/' || v AS platform,
        status, archs, extra, modified, url, node_url
    FROM repos, LATERAL (SELECT CASE WHEN ascii(sha1) % 2 = 0 THEN '7' ELSE '8' END AS v) old
    WHERE repos.platform = 'centos/9' AND flavor = 'default'
) old
"""
LOAD_BUILDS = """
INSERT INTO builds (project, ref, sha1, flavor, distro, distro_version, distro_arch, platform, url, status, extra, modified,
    started, completed)
SELECT project, ref, sha1, flavor, distro, distro_version, 'x86_64', platform, 'https://jenkins.example.com/job/' || id,
    'completed', extra, modified, modified - interval '1 hour', modified
FROM repos WHERE flavor = 'default'
"""
LOAD_REST = (
    "INSERT INTO repo_statuses (repo_id, number, status, at) SELECT id, 0, status, modified FROM repos",
    "INSERT INTO build_statuses (build_id, number, status, at) SELECT id, 0, status, modified FROM builds",
    "INSERT INTO projects VALUES ('ceph')",
    "INSERT INTO commits (project, ref, sha1, repos, builds) SELECT project, ref, sha1, 11, 6 FROM repos"
    " GROUP BY project, ref, sha1 ORDER BY min(id)",
)


def sql_of_commit(number: int) -> str:
    """Give the sha1 of a commit, as the loading has made it."""
    return hashlib.md5(str(number).encode()).hexdigest() + "deadbeef"  # noqa: S324 - not for security


def report(ref: str, sha1: str, status: str = "ready") -> dict[str, object]:
    """Give what a storage node posts."""
    return {
        "ref": ref, "sha1": sha1, "distro": "ubuntu", "distro_version": "jammy", "flavor": "default", "status": status,
        "archs": ["x86_64", "source"], "url": URL.format("r", ref, sha1, "ubuntu/jammy", "default"),
        "chacra_url": URL.format("repos", ref, sha1, "ubuntu/jammy", "default"),
        "extra": {"version": "19.2.0-1", "build_url": "https://jenkins.example.com/job/1/", "node_name": "irvingi01"},
    }  # fmt: skip


def cases(repos: int) -> list[Case]:
    """List what is measured."""
    commits = repos // 10
    # The last that is on main, is ready and not among those that still build; and its five next neighbours.
    of_main = [number for number in range(commits - 60, commits - 20) if number % 26 < 5]
    shas = [sql_of_commit(number) for number in of_main]
    credential = base64.b64encode(f"{PAIR['api_user']}:{PAIR['api_key']}".encode()).decode()
    lua_shas = "{" + ",".join(f"'{sha1}'" for sha1 in shas) + "}"
    prelude = (
        "math.randomseed(os.time() + tonumber(tostring({}):sub(8), 16) % 100000)\n"
        f"local shas = {lua_shas}\n"
        f"local headers = {{['Content-Type'] = 'application/json', ['Authorization'] = 'Basic {credential}'}}\n"
        "local count, threads = 0, 0\n"
        "function setup(thread) thread:set('id', threads); threads = threads + 1 end\n"
    )

    def get(path: str) -> str:
        return prelude + f"function request() return wrk.format('GET', {path}) end"

    def post(path: str, body: dict[str, object]) -> str:
        payload = json.dumps(body).replace("'", "\\'")
        return prelude + (
            f"local body = '{payload}'\nfunction request() count = count + 1\n"
            " local sent = body:gsub('@SHA@', shas[math.random(#shas)]):gsub('@NEW@', id .. '-' .. count)\n"
            f" return wrk.format('POST', '{path}', headers, sent) end"
        )

    found = "status=ready&project=ceph&flavor=default&distros=ubuntu/22.04/x86_64&ref=main"
    latest = "sha1=latest&status=ready&project=ceph&flavor=default&distros=ubuntu/22.04/x86_64,centos/9/x86_64&ref=main"
    rare = "sha1=latest&project=ceph&distros=ubuntu/24.04/arm64,rocky/10/arm64,debian/12&ref=main"
    apart = "sha1=latest&project=ceph&distros=centos/7,centos/8&ref=main"
    leaf = "/api/repos/ceph/main/{}/ubuntu/jammy/"
    newest, sha1 = shas[-1], "shas[math.random(#shas)]"
    repo_file = "/api/repos/ceph/main/latest/ubuntu/jammy/repo"
    known, new = report("main", "@SHA@"), report("main", "@NEW@")
    build = {"url": "https://jenkins.example.com/@NEW@", "ref": "main", "sha1": "@SHA@", "status": "started",
             "log_url": "https://jenkins.example.com/log", "distro": "ubuntu", "distro_version": "jammy",
             "distro_arch": "x86_64", "extra": {"version": "19.2.0-1"}}  # fmt: skip

    def once(path: str) -> tuple[str, str, str | None]:
        return "GET", path, None

    def sent(path: str, body: dict[str, object]) -> tuple[str, str, str | None]:
        return "POST", path, json.dumps(body).replace("@SHA@", newest).replace("@NEW@", "sample")

    return [
        Case("GET /api/repos/ (all refs, all commits)", get("'/api/repos/'"), once("/api/repos/")),
        Case("GET /api/repos/ceph/ (all refs)", get("'/api/repos/ceph/'"), once("/api/repos/ceph/")),
        Case("GET /api/repos/ceph/main/?count=100", get("'/api/repos/ceph/main/?count=100'"), once("/api/repos/ceph/main/?count=100")),
        Case("search, as the test tool does (100 of main)", get(f"'/api/search/?{found}'"), once(f"/api/search/?{found}")),
        Case("the same, count=1", get(f"'/api/search/?{found}&count=1'"), once(f"/api/search/?{found}&count=1")),
        Case("search by commit", get(f"'/api/search/?project=ceph&flavor=default&distros=centos/9/x86_64&sha1=' .. {sha1}"), once(f"/api/search/?project=ceph&flavor=default&distros=centos/9/x86_64&sha1={newest}")),
        Case("search: status=failed of no ref, count=10", get("'/api/search/?project=ceph&status=failed&count=10'"), once("/api/search/?project=ceph&status=failed&count=10")),
        Case("latest over two distros", get(f"'/api/search/?{latest}'"), once(f"/api/search/?{latest}")),
        Case("the same, one client", get(f"'/api/search/?{latest}'"), once(f"/api/search/?{latest}"), clients=1),
        Case("latest over three, any status and flavor", get(f"'/api/search/?{rare}'"), once(f"/api/search/?{rare}")),
        Case("latest over two that no commit has, one client", get(f"'/api/search/?{apart}'"), once(f"/api/search/?{apart}"), clients=1),
        Case("GET a leaf", get(f"'/api/repos/ceph/main/' .. {sha1} .. '/ubuntu/jammy/'"), once(leaf.format(newest))),
        Case("GET latest/.../repo (302)", get(f"'{repo_file}'"), once(repo_file)),
        Case("GET builds of a commit", get(f"'/api/builds/ceph/main/' .. {sha1}"), once(f"/api/builds/ceph/main/{newest}")),
        Case("POST update of a repo", post("/api/repos/ceph/", known), sent("/api/repos/ceph/", known), read=False),
        Case("POST new repo", post("/api/repos/ceph/", new), sent("/api/repos/ceph/", new), read=False),
        Case("POST new build", post("/api/builds/ceph/", build), sent("/api/builds/ceph/", build), read=False),
    ]  # fmt: skip


def loaded(repos: int) -> Iterator[tuple[str, dict[str, object]]]:
    """Give the statements that fill the database."""
    commits = repos // 10
    for first in range(1, commits + 1, 1000):
        last = min(first + 999, commits)
        yield LOAD, {"first": first, "last": last, "commits": commits, "refs": max(1, repos // 100)}
    yield LOAD_APART, {}
    yield LOAD_BUILDS, {}
    for statement in LOAD_REST:
        yield statement, {}


def main() -> None:
    """Load, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repos", type=int, default=50_000, help="how many repos (default: 50000)")
    parser.add_argument("--seconds", type=float, default=5, help="how long each case is measured (default: 5)")
    parser.add_argument("--only", default="", help="measure only the cases whose names contain this")
    given = parser.parse_args()
    with database() as url:
        load(url, loaded(given.repos))
        measure(url, [case for case in cases(given.repos) if given.only in case.name], given.seconds, PAIR)


if __name__ == "__main__":
    main()
