"""Which job a command works on: a new one, or one that it goes on with."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from fanout.cli.console import note
from fanout.cli.target import Target
from fanout.cli.work import Work
from fanout.client import ChangedInput, Doc, Fanout, Job, new_job_id
from fanout.client.jobfile import JobFile, models_of
from fanout.client.resumption import kept
from fanout.errors import Collected, JobError, UsageError
from fanout.store import JobInfo
from fanout.wire import JobSpec

_CHOICES = (
    "--overwrite begins anew, --accept-changes goes on with the new for what has no record yet"
)


async def begun(fo: Fanout, work: Work, spec: JobSpec, target: Target) -> Job:
    """The job that collects into `target`, fed in the background.

    Raises:
        UsageError: the target holds the work of a job that did something else.
    """
    if target.replaced is not None:
        await _end(fo, target.replaced.job)
    file = target.file
    if file is None and work.resume is not None:
        return await _adopted(fo, work, spec, target, work.resume)
    if file is None:
        return await _new(fo, work, spec, target)
    if work.resume not in (None, file.job):
        raise UsageError(
            f"{target.path} is the output of job {file.job}, not of {work.resume}: name another "
            "output, or --overwrite"
        )
    return await _resumed(fo, work, spec, target, file)


async def _new(fo: Fanout, work: Work, spec: JobSpec, target: Target) -> Job:
    job_id = new_job_id()
    if target.is_resumable:
        target.begin(JobFile.new(job_id, spec, fo.settings, work.inputs, work.reading))
    return await fo.submit(
        work.kind,
        work.told_of_bad_rows(),
        job_id=job_id,
        tier=spec.tier,
        window=work.window,
        results=work.results,
        ledger=target.ledger,
        broken="pause" if target.is_resumable else "cancel",
        **work.params,
    )


async def _resumed(fo: Fanout, work: Work, spec: JobSpec, target: Target, file: JobFile) -> Job:
    changed = file.changes(spec, models_of(fo.settings, spec.tier))
    if changed and not work.accept_changes:
        differ = "differs" if len(changed) == 1 else "differ"
        raise UsageError(
            f"{target.path} is the work of job {file.job}, and {' and '.join(changed)} {differ} "
            f"from what it was made with: {_CHOICES}"
        )
    before = await _known(fo, file.job)
    if not changed and before is not None and before.state == "cancelled":
        raise UsageError(
            f"job {file.job} of {target.path} was cancelled: --overwrite begins anew, "
            f"`fanout results {file.job} -o {target.path}` writes what is left of it"
        )
    # What can be read only once cannot be judged first and taken as it is then.
    if not changed and (callable(work.docs) or not work.accept_changes):
        try:
            return await _went_on(fo, work, spec, target, file)
        except ChangedInput as error:
            if not work.accept_changes:
                raise UsageError(f"{target.path} cannot go on: {error}; {_CHOICES}") from error
    # Workers know a job by its id, and items of it may be queued: what is to be done otherwise is
    # another job.
    if before is not None:
        await _drained(fo, file, target)
    file.previous.append(file.job)
    file.job, file.spec, file.models = new_job_id(), spec, models_of(fo.settings, spec.tier)
    file.accepted = True
    return await _went_on(fo, work, spec, target, file.digested(), accept=True)


async def _went_on(
    fo: Fanout, work: Work, spec: JobSpec, target: Target, file: JobFile, *, accept: bool = False
) -> Job:
    assert target.ledger is not None  # noqa: S101 - an output with a job file has one
    written = target.ledger.counts.total()
    try:
        job = await fo.resume(
            file.job,
            _distinct(work, target) if file.accepted else work.docs,
            window=work.window,
            ledger=target.ledger,
            spec=spec,
            checkpoint=file.checkpoint,
            accept_changes=accept,
        )
    except Collected:
        raise
    except JobError as error:
        raise UsageError(f"{target.path} cannot go on: {error}") from error
    file.state = "open"
    if work.inputs and not file.inputs_are_as_they_were(work.inputs):
        fresh = JobFile.new(file.job, spec, fo.settings, work.inputs, work.reading)
        file.inputs, file.reading, file.folder = fresh.inputs, fresh.reading, fresh.folder
    file.reached(job.checkpoint, target.ledger.counts)
    file.save(target.path)
    if not work.quiet:
        note(f"{target.path} holds {written:,} records of job {job.id} already: it goes on")
    return job


async def _adopted(fo: Fanout, work: Work, spec: JobSpec, target: Target, job_id: str) -> Job:
    """Go on with a job whose records so far are elsewhere: they are not done again."""
    info = await fo.store.get(job_id)
    file = JobFile.new(job_id, info.spec, fo.settings, work.inputs, work.reading)
    if changed := file.changes(spec, file.models):
        raise UsageError(f"job {job_id} was made with something else: {' and '.join(changed)}")
    job = await fo.resume(
        job_id,
        work.docs,
        window=work.window,
        spec=spec,
        accept_changes=work.accept_changes,
    )
    if target.is_resumable:
        target.continue_elsewhere(file, job.ledger)
    return job


def _distinct(work: Work, target: Target) -> Callable[[], Iterable[Doc]] | Iterable[Doc]:
    def opened() -> Iterable[Doc]:
        return target.distinct(work.opened())

    return opened if callable(work.docs) else opened()


async def _drained(fo: Fanout, file: JobFile, target: Target) -> None:
    """End a job that another one takes over from; what it has done is kept."""
    await _end(fo, file.job)
    assert target.ledger is not None  # noqa: S101 - the caller's
    async for batch in kept(fo.store, file.job):
        done = [record for record in batch.records if record.status != "cancelled"]
        if new := target.ledger.new_of(done):
            target.write(new, (await fo.store.get(file.job)).input)
            for record in new:
                target.ledger.add(record.ordinal, record.status)


async def _end(fo: Fanout, job_id: str) -> None:
    info = await _known(fo, job_id)
    if info is not None and not info.done:
        await fo.store.cancel(job_id)
        await fo.store.keep(job_id, fo.settings.keep_jobs_s)


async def _known(fo: Fanout, job_id: str) -> JobInfo | None:
    try:
        return await fo.store.get(job_id)
    except JobError:
        return None
