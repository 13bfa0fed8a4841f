"""What chacra, ceph-build and teuthology send about repos and builds, and what today's server answered to it."""

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy.orm import Session
from webtest import TestApp

from labctl.app import make_app
from labctl.settings import Settings

#: As it was sent: admin with the right key, and with a wrong one.
RIGHT = {"Authorization": "Basic YWRtaW46c2VjcmV0"}
WRONG = {"Authorization": "Basic YWRtaW46d3Jvbmc="}
PYTHON = {"User-Agent": "python-requests/2.34.2", "Accept": "*/*"}
CURL = {"User-Agent": "curl/7.88.1", "Accept": "*/*"}
JSON = {"Content-Type": "application/json"}
TIME = re.compile(r"\d{4}-\d{2}-\d{2} \d{2}:\d{2}:\d{2}\.\d{6}\+00:00")


@pytest.fixture
def app(session: Session, settings: Settings) -> TestApp:
    return TestApp(make_app(replace(settings, api_user="admin", api_key="secret")))


def without_times(answer: list[dict[str, Any]], *times: str) -> list[dict[str, Any]]:
    """Take times out of what was answered, which must be times."""
    for each in answer:
        for key in times:
            assert TIME.fullmatch(each[key])
    return [{key: value for key, value in each.items() if key not in times} for each in answer]


def test_a_repo_as_chacra_reports_it_while_it_is_made(app: TestApp, stopped_clock: Any) -> None:
    ref, sha1 = "wip-chacra-1795174255", "cccccccccccccccccccccccccccccc006b002f6f"
    below = f"ceph/{ref}/{sha1}/centos/9/flavors/default/"
    report = {
        "path": None,
        "project_name": "ceph",
        "ref": ref,
        "sha1": sha1,
        "distro": "centos",
        "distro_version": "9",
        "modified": "2026-11-20 11:30:55.533719+00:00",
        "signed": False,
        "needs_update": True,
        "is_updating": False,
        "is_queued": True,
        "type": "rpm",
        "size": 0,
        "flavor": "default",
        "archs": ["x86_64"],
        "extra": {},
        "status": "queued",
        "chacra_url": f"https://127.0.0.1:9141/repos/{below}",
        "url": f"https://127.0.0.1:9141/r/{below}",
    }
    shown = {
        "url": f"https://127.0.0.1:9141/r/{below}",
        "chacra_url": f"https://127.0.0.1:9141/repos/{below}",
        "ref": ref,
        "sha1": sha1,
        "distro": "centos",
        "distro_version": "9",
        "distro_codename": None,
        "status": "queued",
        "flavor": "default",
        "project": "ceph",
        "archs": ["x86_64"],
        "extra": {},
    }

    def post(**changes: Any) -> Any:
        body = json.dumps({**report, **changes})
        return app.post("/api/repos/ceph/", body, headers={**PYTHON, **JSON, **RIGHT})

    answer = post()
    assert (answer.json, answer.content_type) == ({}, "application/json")
    found = app.get(f"/api/search/?project=ceph&sha1={sha1}", headers=PYTHON)
    assert found.content_type == "application/json"
    assert without_times(found.json, "modified") == [shown]

    stopped_clock.advance(seconds=0.1)
    assert post(status="building", needs_update=False, is_updating=True).json == {}
    assert post(status="ready", archs=["x86_64", "aarch64"], is_queued=False, size=4096).json == {}
    listed = app.get(f"/api/repos/ceph/{ref}/{sha1}/centos/9/", headers=PYTHON).json
    ready = {**shown, "status": "ready", "archs": ["x86_64", "aarch64"]}
    assert without_times(listed, "modified") == [ready]
    assert listed[0]["modified"] > found.json[0]["modified"]

    url = f"/api/repos/ceph/{ref}/latest/centos/9/repo/?arch=x86_64"
    assert app.get(url, headers=PYTHON, status=302).headers["Location"] == f"https://127.0.0.1:9141/repos/{below}repo"
    url = f"/api/repos/ceph/{ref}/{sha1}/centos/9/x86_64/noarch/repodata/repomd.xml"
    location = app.get(url, headers=PYTHON, status=302).headers["Location"]
    assert location == f"https://127.0.0.1:9141/r/{below}noarch/repodata/repomd.xml"

    # Today's server answers HTML; clients look at the status only.
    app.post("/api/repos/ceph/", "{}", headers={**PYTHON, **JSON, **WRONG}, status=401)
    assert post(status="deleted").json == {}
    assert app.get(f"/api/search/?project=ceph&sha1={sha1}").json == []


def test_builds_and_repos_as_ceph_build_reports_and_finds_them(app: TestApp, stopped_clock: Any) -> None:
    ref, sha1 = "wip-cb-6b002f72", "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb6b002f72"
    # From a shell script: four blanks in front of each key.
    queued = f"""{{    "extra":{{        "version":"19.2.0",        "root_build_cause":"SCMTRIGGER",\
        "node_name":"irvingi01",        "job_name":"ceph-dev-build",        "build_user":"zack"    }},\
    "url":"https://jenkins.example/job/ceph-dev/6b002f72/",\
    "log_url":"https://jenkins.example/job/ceph-dev/6b002f72//consoleFull",    "status":"queued",\
    "distro":"",    "distro_version":"",    "distro_arch":"",    "ref":"{ref}",    "sha1":"{sha1}",\
    "flavor":"default"}}"""
    for headers, status in ((RIGHT, 200), (WRONG, 401)):
        answer = app.post("/api/builds/ceph/", queued, headers={**CURL, **JSON, **headers}, status=status)
        assert status == 401 or answer.json == {}
    builds = app.get(f"/api/builds/ceph/{ref}/{sha1}/", headers=PYTHON).json
    assert without_times(builds, "modified", "started") == [
        {
            "url": "https://jenkins.example/job/ceph-dev/6b002f72/",
            "log_url": "https://jenkins.example/job/ceph-dev/6b002f72//consoleFull",
            "ref": ref,
            "sha1": sha1,
            "flavor": "default",
            "status": "queued",
            "extra": {
                "version": "19.2.0",
                "root_build_cause": "SCMTRIGGER",
                "node_name": "irvingi01",
                "job_name": "ceph-dev-build",
                "build_user": "zack",
            },
            "completed": None,
            "project": "ceph",
            "distro_version": "",
            "distro_codename": None,
            "distro": "",
            "distro_arch": "",
        }
    ]

    extra = {
        "version": "19.2.0",
        "package_manager_version": "19.2.0-1.gbbbbbbbb",
        "build_url": "https://jenkins.example/job/ceph-dev-build/6b002f72/",
        "root_build_cause": "SCMTRIGGER",
        "node_name": "irvingi01",
        "job_name": "ceph-dev-build",
    }

    def report(distro: str, version: str, arch: str, *more: str) -> dict[str, Any]:
        stopped_clock.advance(seconds=0.02)
        below = f"ceph/{ref}/{sha1}/{distro}/{version}/{arch}/"
        sent = {
            "url": f"https://chacra.ceph.com/r/{below}",
            "chacra_url": f"https://chacra.ceph.com/repos/{below}",
            "status": "ready",
            "distro": distro,
            "distro_version": version,
            "archs": [arch, *more],
            "ref": ref,
            "sha1": sha1,
            "flavor": "default",
            "extra": extra,
        }
        body = json.dumps(sent, indent=4).replace("\n", "")
        assert app.post("/api/repos/ceph/", body, headers={**CURL, **JSON, **RIGHT}).json == {}
        number, codename = {"jammy": ("22.04", "jammy")}.get(version, (version, None))
        return {**sent, "distro_version": number, "distro_codename": codename, "project": "ceph"}

    x86 = report("centos", "9", "x86_64", "source")
    url = f"/api/search/?sha1={sha1}&distros=centos%2F9%2Fx86_64&ref={ref}&flavor=default&project=ceph"
    assert without_times(app.get(url, headers=PYTHON).json, "modified") == [x86]
    arm = report("centos", "9", "aarch64", "source")
    assert without_times(app.get(url, headers=PYTHON).json, "modified") == [x86]
    jammy = report("ubuntu", "jammy", "x86_64")
    rocky = report("rocky", "10", "x86_64", "source")

    root = f"/api/repos/ceph/{ref}"
    location = app.get(f"{root}/{sha1}/centos/9/flavors/default/repo", headers=CURL, status=302).headers["Location"]
    assert location == f"https://chacra.ceph.com/repos/ceph/{ref}/{sha1}/centos/9/aarch64/repo"
    location = app.get(f"{root}/{sha1}/ubuntu/jammy/repo", headers=CURL, status=302).headers["Location"]
    assert location == f"https://chacra.ceph.com/repos/ceph/{ref}/{sha1}/ubuntu/jammy/x86_64/repo"
    for commit in (sha1, "latest"):
        for leaf, repos in (("centos/9", [arm, x86]), ("rocky/10", [rocky]), ("ubuntu/jammy", [jammy])):
            listed = app.get(f"{root}/{commit}/{leaf}/flavors/default/", headers=PYTHON).json
            assert without_times(listed, "modified") == repos

    for path in ("latest/ubuntu/jammy/flavors/crimson/", "d" * 40 + "/centos/9/flavors/default/repo"):
        assert f"no repository is ready for: ceph/{ref}" in app.get(f"{root}/{path}", headers=CURL, status=504).text


def test_repos_and_builds_as_teuthology_looks_for_them(app: TestApp, stopped_clock: Any) -> None:
    ref, old, new = "wip8b8c0d1", "f" * 40, "8b8c0d1" * 5 + "8b8c0"
    expected = []
    for sha1 in (old, new):
        stopped_clock.advance(seconds=1)
        below = f"ceph/{ref}/{sha1}/centos/9/flavors/default/"
        sent = {
            "url": f"https://1.chacra.example/r/{below}",
            "chacra_url": f"https://1.chacra.example/repos/{below}",
            "ref": ref,
            "sha1": sha1,
            "distro": "centos",
            "distro_version": "9",
            "status": "ready",
            "flavor": "default",
            "archs": ["x86_64", "source"],
            "extra": {
                "version": f"19.2.0-1-g{sha1[:8]}",
                "package_manager_version": "19.2.0-1",
                "build_url": "https://jenkins/1/",
                "root_build_cause": "x",
                "node_name": "n",
                "job_name": "j",
            },
        }
        assert app.post("/api/repos/ceph/", json.dumps(sent), headers={**PYTHON, **JSON, **RIGHT}).json == {}
        expected.insert(0, {**sent, "distro_codename": None, "project": "ceph"})

    query = f"status=ready&project=ceph&flavor=default&distros=centos%2F9%2Fx86_64&ref={ref}"
    # Today's server redirects to the slash; the protocol wants the answer.
    for url, headers in ((f"/api/search?{query}", {**PYTHON, **JSON}), (f"/api/search/?{query}", PYTHON)):
        found = app.get(url, headers=headers)
        assert found.status_int == 200
        assert without_times(found.json, "modified") == expected

    build = {
        "ref": ref,
        "sha1": new,
        "url": "https://jenkins/8b8c0d1/",
        "log_url": "https://jenkins/l",
        "status": "started",
        "distro": "centos",
        "distro_version": "9",
        "distro_arch": "x86_64",
        "flavor": "default",
        "extra": {},
    }
    assert app.post("/api/builds/ceph/", json.dumps(build), headers={**PYTHON, **JSON, **RIGHT}).json == {}
    for slash in ("", "/"):
        builds = app.get(f"/api/builds/ceph/{ref}/{new}{slash}", headers=PYTHON).json
        assert without_times(builds, "modified", "started") == [
            {**build, "completed": None, "project": "ceph", "distro_codename": None}
        ]
