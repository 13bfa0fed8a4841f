"""``/runs``, ``/api/runs`` and ``/queue``."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import orjson

from labctl.db import reading, transaction
from labctl.errors import Invalid, NotFound
from labctl.http import body, paging, render
from labctl.http.resource import Mount, Request, Resource
from labctl.paging import Listed, Page
from labctl.runs import documents, queries, service, wire
from labctl.runs.queries import RunFilter
from labctl.runs.states import JobState
from labctl.settings import Settings


class RunsController(Resource):
    """All runs, as today's clients see them: a list, newest first."""

    #: Whether reporting a job of a run that does not exist makes the run, and a job without id gets one.
    lenient = True

    def __init__(self, settings: Settings, mount: Mount) -> None:
        """Take what applies to this mount."""
        self.settings = settings
        self.mount = mount
        self.logs = documents.LogURL(settings.job_log_url)
        # At the top it is called flavors, further down flavor.
        words = {**{word: word for word in queries.FILTERS}, "flavors": "flavor", "date": "date"}
        del words["flavor"]
        self.children = {
            **{word: ValuesController(settings, name, RunFilter(), frozenset()) for word, name in words.items()},
            "queued": QueuedRunsController(settings),
        }

    def item(self, segment: str) -> Resource | None:
        """One run."""
        return RunController(self, segment)

    def get(self, request: Request) -> Any:
        """List the runs, the last posted first."""
        page = paging.page_of(request, self.settings)
        fields = body.names(request, "fields")
        if fields:
            _check_fields(fields, wire.RUN_KEYS)
        with reading() as session:
            listed = queries.newest_runs(session, page)
        return answer_list(request, page, listed, self.shaped(request, listed, fields))

    def shaped(self, request: Request, listed: Listed, fields: list[str] | None) -> Any:
        """Give the list as it goes out."""
        text = queries.at(render.as_list(listed.documents), request.base_url())
        if not fields:
            return render.Text(text)
        return [{field: run[field] for field in fields} for run in orjson.loads(text)]

    def post(self, request: Request) -> Any:
        """Add a run."""
        data = body.read_object(request, self.settings.max_body)
        if data.get("name") is None:
            raise Invalid("could not find required key: 'name'")
        name = body.parse(wire.RunInput, data).name
        check_run_name(name)
        with transaction(request.actor()) as session:
            service.add_run(session, name)
        return {}


class RunsByNameController(RunsController):
    """All runs, as paddles' README documents them: objects keyed by the run's name and by the job's id."""

    lenient = False

    def item(self, segment: str) -> Resource | None:
        """One run."""
        return RunByNameController(self, segment)

    def shaped(self, request: Request, listed: Listed, fields: list[str] | None) -> Any:
        """Give the runs behind their names; ``fields`` chooses what stands there."""
        runs = orjson.loads(queries.at(render.as_list(listed.documents), request.base_url()))
        if fields:
            return {run["name"]: {field: run[field] for field in fields} for run in runs}
        return {run["name"]: wire.run_to_entry(run) for run in runs}


class RunController(Resource):
    """One run, with its jobs."""

    def __init__(self, runs: RunsController, name: str) -> None:
        """Note the name; the run is looked for by the methods."""
        self.runs = runs
        self.name = name

    @property
    def children(self) -> Mapping[str, Resource]:  # type: ignore[override]
        """The run's jobs."""
        return {"jobs": JobsController(self.runs, self.name)}

    def item(self, segment: str) -> Resource | None:
        """One job, at the short URL that paddles' README shows."""
        return JobController(self.runs, self.name, segment)

    def get(self, request: Request) -> Any:
        """Give the run and its jobs, as they are at one instant."""
        with reading() as session:
            found = queries.run_with_jobs(session, self.name, self.runs.logs)
        if found is None:
            raise NotFound(f"run not found: {self.name}")
        run, jobs = found
        return render.Text(f'{queries.at(run, request.base_url())[:-1]},"jobs":{render.as_list(jobs)}}}')

    def delete(self, request: Request) -> Any:
        """Remove the run and its jobs."""
        with transaction(request.actor()) as session:
            service.remove_run(session, self.name)
        return {}


class RunByNameController(RunController):
    """One run as paddles' README documents it: its jobs by their ids."""

    def get(self, request: Request) -> Any:
        """List the jobs behind their ids."""
        with reading() as session:
            jobs = queries.statuses_of_jobs(session, self.name)
        if jobs is None:
            raise NotFound(f"run not found: {self.name}")
        href = f"{request.base_url()}/{quote(self.name, safe=':')}"
        return {job_id: wire.job_to_entry(job_id, status, href) for job_id, status in jobs}


class JobsController(Resource):
    """The jobs of a run."""

    def __init__(self, runs: RunsController, run_name: str) -> None:
        """Note the run's name."""
        self.runs = runs
        self.run_name = run_name

    def item(self, segment: str) -> Resource | None:
        """One job."""
        return JobController(self.runs, self.run_name, segment)

    def get(self, request: Request) -> Any:
        """List the jobs, newest first: all of them, or those with ``status=``; ``fields=`` cuts them."""
        status = body.choice(request, "status", list(JobState))
        fields = body.names(request, "fields")
        if fields:
            _check_fields(fields, wire.JOB_KEYS | frozenset(documents.RARE_KEYS))
        found: Any
        with reading() as session:
            if fields:
                # The URL is not the database's to know; it is made of the id.
                kept = [field for field in fields if field != "href"]
                wanted = kept if kept == fields or "job_id" in kept else [*kept, "job_id"]
                found = queries.fields_of_jobs(session, self.run_name, wanted, self.runs.logs, status=status)
            else:
                found = queries.jobs_of_run(session, self.run_name, self.runs.logs, status=status)
        if found is None:
            raise NotFound(f"run not found: {self.run_name}")
        if fields and "href" in fields:
            return wire.with_hrefs(found, fields, f"{request.base_url()}/{quote(self.run_name, safe=':')}")
        return found if fields else render.as_list(found)

    def post(self, request: Request) -> Any:
        """Add a job."""
        check_run_name(self.run_name)
        report = _read_report(request, self.runs.settings)
        if report.job_id is None and not self.runs.lenient:
            raise Invalid("could not find required key: 'job_id'")
        with transaction(request.actor()) as session:
            job_id = service.report_job(session, self.run_name, report, add_run=self.runs.lenient)
        return {"job_id": job_id} if self.runs.lenient else {}


class JobController(Resource):
    """One job."""

    def __init__(self, runs: RunsController, run_name: str, job_id: str) -> None:
        """Note the names; the job is looked for by the methods."""
        self.runs = runs
        self.run_name = run_name
        self.job_id = job_id

    def get(self, request: Request) -> Any:
        """Give all that is known of the job."""
        with reading() as session:
            job = queries.job(session, self.run_name, self.job_id, self.runs.logs)
        if job is None:
            raise NotFound(f"job not found: {self.job_id}")
        return render.Text(job)

    def put(self, request: Request) -> Any:
        """Change what is sent, and nothing else; the id never."""
        report = _read_report(request, self.runs.settings, empty=True)
        with transaction(request.actor()) as session:
            service.update_job(session, self.run_name, self.job_id, report)
        return {}

    def delete(self, request: Request) -> Any:
        """Remove the job."""
        with transaction(request.actor()) as session:
            service.remove_job(session, self.run_name, self.job_id)
        return {}


class ValuesController(Resource):
    """The values that runs have in one column: ``/runs/branch/``, and below it the runs of one value."""

    def __init__(self, settings: Settings, name: str, chosen: RunFilter, used: frozenset[str]) -> None:
        """``chosen`` are the runs that the path has named so far, by the columns in ``used``."""
        self.settings = settings
        self.name = name
        self.chosen = chosen
        self.used = used | {name}
        if name == "date":
            self.children = {"from": DateFromController(settings, chosen, self.used)}

    def item(self, segment: str) -> Resource | None:
        """The runs that have this value."""
        if self.name == "date":
            day = body.day(segment)
            return ChosenRunsController(self.settings, replace(self.chosen, first_day=day, last_day=day), self.used)
        chosen = replace(self.chosen, values={**self.chosen.values, self.name: segment})
        return ChosenRunsController(self.settings, chosen, self.used)

    def get(self, request: Request) -> Any:
        """List the values, sorted."""
        with reading() as session:
            return queries.values_of(session, self.name, self.chosen)


class ChosenRunsController(Resource):
    """The runs that the path has chosen, the last scheduled first; more words choose among them."""

    def __init__(self, settings: Settings, chosen: RunFilter, used: frozenset[str]) -> None:
        """Take what the path has said."""
        self.settings = settings
        self.chosen = chosen
        self.used = used

    @property
    def children(self) -> Mapping[str, Resource]:  # type: ignore[override]
        """The columns that were not used yet."""
        return {
            name: ValuesController(self.settings, name, self.chosen, self.used)
            for name in (*queries.FILTERS, "date")
            if name not in self.used
        }

    def get(self, request: Request) -> Any:
        """List the runs."""
        page = paging.page_of(request, self.settings)
        since = body.text(request, "since")
        chosen = self.chosen if since is None else replace(self.chosen, since=body.day(since, "since"))
        with reading() as session:
            listed = queries.filtered_runs(session, chosen, page)
        return answer_runs(request, page, listed)


class DateFromController(Resource):
    """``/runs/date/from/A/to/B/``: the runs scheduled from day A to day B, both whole."""

    def __init__(self, settings: Settings, chosen: RunFilter, used: frozenset[str]) -> None:
        """Take what the path has said."""
        self.settings = settings
        self.chosen = chosen
        self.used = used

    def item(self, segment: str) -> Resource | None:
        """The first day."""
        first = body.day(segment)
        return DateToController(self.settings, replace(self.chosen, first_day=first), self.used)


class DateToController(DateFromController):
    """A first day without a last one: no runs."""

    @property
    def children(self) -> Mapping[str, Resource]:  # type: ignore[override]
        """Where the last day is said."""
        return {"to": LastDayController(self.settings, self.chosen, self.used)}

    def item(self, segment: str) -> Resource | None:
        """Nothing else comes here."""
        return None

    def get(self, request: Request) -> Any:
        """Answer an empty list, as paddles does."""
        return []


class LastDayController(DateFromController):
    """The place of the last day."""

    def item(self, segment: str) -> Resource | None:
        """The runs up to the last day."""
        return ChosenRunsController(self.settings, replace(self.chosen, last_day=body.day(segment)), self.used)


class QueuedRunsController(Resource):
    """The runs that have at least one queued job, the first scheduled first."""

    def __init__(self, settings: Settings) -> None:
        """Take the limits."""
        self.settings = settings

    def get(self, request: Request) -> Any:
        """List the runs."""
        page = paging.page_of(request, self.settings)
        with reading() as session:
            listed = queries.queued_runs(session, page)
        return answer_runs(request, page, listed)


def answer_list(request: Request, page: Page, listed: Listed, value: Any) -> Any:
    """Answer part of a list, with the way to the next part."""
    return render.with_next(value, paging.next_url(request, page, len(listed.documents), listed.last))


def answer_runs(request: Request, page: Page, listed: Listed) -> Any:
    """Answer a list of runs."""
    text = queries.at(render.as_list(listed.documents), request.base_url())
    return answer_list(request, page, listed, render.Text(text))


def check_run_name(name: str) -> None:
    """Refuse a run whose URL would be something else's; raises :class:`Invalid`."""
    too_long = len(name) > wire.MAX_NAME or len(quote(name)) > wire.MAX_ENCODED_NAME
    if name in wire.RESERVED or not name.isprintable() or too_long:
        words = ", ".join(sorted(wire.RESERVED))
        raise Invalid(
            f"must be printable, at most {wire.MAX_NAME} characters, and none of the words {words}", field="name"
        )


def _read_report(request: Request, settings: Settings, *, empty: bool = False) -> service.Report:
    data = body.read_object(request, settings.max_body)
    if not data and not empty:
        raise Invalid("the job has no keys; job_id at least is wanted", field="body")
    return wire.report_from_wire(body.parse(wire.JobInput, wire.normalized(data)))


def _check_fields(fields: list[str], known: frozenset[str]) -> None:
    for field in fields:
        if field not in known:
            raise Invalid(f"an invalid field was specified: {field!r}; there are: {', '.join(sorted(known))}")
