"""A study's runs in several processes at once, on one machine or on several.

Processes that share a folder never work on one run: who begins it claims it by a lock in its
folder, and who finds it claimed goes on to the next. What a run prints goes to output.log there.
"""

import argparse
import contextlib
import multiprocessing
import os
import signal
import time
import traceback
from multiprocessing import connection, resource_tracker

import torch

import folders
from cli import Parser, UserError, first_line, is_count, message_of, number

AT_WORK = "another process is at work"  # what folders.locked says of a folder that is taken
PATIENCE = 5.0  # seconds between two tries of a run that another process has and others need


# ---------------------------------------------------------------- options


def parse(argv):
    """The options of a study: rows, seeds, jobs, shard, gather. Raises UserError."""
    parser = Parser("A study's rows, and how they are shared out.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help="rows of its table (default: all)")
    add_seeds(parser)
    add_options(parser)
    return parser.parse_intermixed_args(argv)


def add_seeds(parser):
    """How many seeds the rows have."""
    kind = number(int, 1, 1000)
    parser.add_argument("--seeds", type=kind, metavar="N", help="of each row (default: its own)")


def add_options(parser):
    """How runs are shared out."""
    group = parser.add_argument_group("runs at once")
    kind = number(int, 1, 1024)
    group.add_argument("--jobs", type=kind, metavar="N", help="processes that train at once")
    group.add_argument(
        "--shard", type=shard, metavar="I/N", help="only the I-th of N shares of the runs"
    )
    group.add_argument(
        "--gather", action="store_true", help="train nothing: record what is finished in runs/"
    )


def words(args):
    """The command line of these options, without the rows."""
    result = [] if getattr(args, "seeds", None) is None else ["--seeds", str(args.seeds)]
    result += [] if args.jobs is None else ["--jobs", str(args.jobs)]
    result += [] if args.shard is None else ["--shard", "{}/{}".format(*args.shard)]
    return result + (["--gather"] if args.gather else [])


def shard(text):
    """An argparse type: "2/8" is (2, 8)."""
    first, _, count = text.partition("/")
    if not (is_count(first) and is_count(count) and 1 <= int(first) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N, as 1/8 to 8/8")
    return int(first), int(count)


# ---------------------------------------------------------------- what is to be done


class Queue:
    """Runs that are to be done, each after those it needs.

    done: a set of runs; failed: {run: why}; left: a set of runs that another process is at.
    """

    def __init__(self, needs):
        """needs: {run: the runs among the keys that come before it}; a run is (row, seed)."""
        self.needs = needs
        self.waiting = list(needs)
        self.done, self.failed, self.left = set(), {}, set()
        self.not_before = {}

    def take(self):
        """The next run that can begin now, which waits no longer; None where there is none."""
        for run in list(self.waiting):
            if lost := [other for other in self.needs[run] if other in self.failed]:
                self.waiting.remove(run)
                self.end(run, f"it needs {title(lost[0])}")
            elif self.can_begin(run):
                self.waiting.remove(run)
                return run
        return None

    def can_begin(self, run):
        """Whether all that a run needs is done, and PATIENCE is over if another process had it."""
        on_time = time.monotonic() >= self.not_before.get(run, 0)
        return on_time and self.done.issuperset(self.needs[run])

    def end(self, run, why):
        """Notes and prints how a run ended; why: not done for this reason, None where it is."""
        if why is None:
            self.done.add(run)
            count = len(self.needs)
            print(f"finished: {title(run)} ({len(self.done)} of {count})", flush=True)
        elif AT_WORK not in why:
            self.failed[run] = why
            print(f"failed: {title(run)}: {why}", flush=True)
        elif any(run in self.needs[other] for other in self.waiting):
            if run not in self.not_before:
                print(f"waited for: {title(run)}, at which another process is", flush=True)
            self.not_before[run] = time.monotonic() + PATIENCE
            self.waiting.append(run)
        else:
            self.left.add(run)
            print(f"left to another process: {title(run)}", flush=True)

    def raise_failures(self):
        """Raises UserError where a run failed."""
        if self.failed:
            reasons = "; ".join(f"{title(run)} ({why})" for run, why in self.failed.items())
            count = f"{len(self.failed)} of {len(self.needs)} runs failed"
            raise UserError(f"{count}, see output.log in their folders: {reasons}")


def title(run):
    """ "disguise, seed 0"."""
    return "{}, seed {}".format(*run)


# ---------------------------------------------------------------- processes


def run_all(study, queue, jobs, after_run):
    """Does the runs of a Queue in `jobs` processes; after_run(run) is called after each.

    study: has folder(row, seed) and run_once(row, seed); it is sent to the processes. Raises
    KeyboardInterrupt, after all of them have been ended.
    """
    jobs = min(jobs, len(queue.waiting))
    threads = max(1, torch.get_num_threads() // max(1, jobs))
    workers = [Worker(study, index, threads) for index in range(jobs)]
    try:
        while queue.waiting or any(worker.run for worker in workers):
            for worker in workers:
                if worker.run is None and (run := queue.take()):
                    worker.begin(run)
                    if run not in queue.not_before:
                        print(f"begun: {title(run)}", flush=True)
            busy = {worker.connection: worker for worker in workers if worker.run}
            for ready in connection.wait(busy, timeout=0.5):
                run, why = busy[ready].end()
                queue.end(run, why)
                after_run(run)
    except KeyboardInterrupt:
        text = "the same command goes on with what is not finished"
        raise KeyboardInterrupt(text) from None
    finally:
        for worker in workers:
            worker.stop()


class Worker:
    """A process that does one run after another; a new one after a run that failed.

    What a failure leaves behind, in a GPU say, would spoil the next run.
    """

    def __init__(self, study, index, threads):
        """index: from 0, which of the processes; threads: of torch, in it."""
        self.study, self.index, self.threads = study, index, threads
        self.run = self.process = self.connection = None

    def begin(self, run):
        """Has the process do a run."""
        if self.process is None:
            self.start()
        self.run = run
        with contextlib.suppress(OSError):  # it has ended: `end` says so
            self.connection.send(run)

    def start(self):
        """Starts the process. It ignores Ctrl-C, after which this one ends it."""
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        arguments = (theirs, self.study, self.threads)
        self.process = context.Process(target=serve, args=arguments, daemon=True)
        before = os.environ.copy()
        try:
            os.environ.update(environment(self.index, self.threads))
            with interrupts_held_back():
                self.process.start()
        finally:
            for name in set(os.environ) - set(before):
                os.environ.pop(name)
            os.environ.update(before)
        theirs.close()

    def end(self):
        """(run, why): the run that has ended, and why it is not done, None where it is."""
        run, self.run = self.run, None
        try:
            why = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            why = f"its process ended with exit code {self.process.exitcode}"
        if why is not None and AT_WORK not in why:
            self.stop()
        return run, why

    def stop(self):
        """Ends the process at once."""
        if self.process is not None:
            if self.process.pid is not None:  # otherwise it was interrupted before it began
                self.process.terminate()
                self.process.join()
            self.connection.close()
        self.run = self.process = self.connection = None


@contextlib.contextmanager
def interrupts_held_back():
    """Within the block Ctrl-C waits; a process that is started there never gets one."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows: see `serve`
        yield
        return
    resource_tracker.ensure_running()  # else the first process starts it, which ends the block
    came = []  # to another thread, which does not hold it back
    handler = signal.signal(signal.SIGINT, lambda *given: came.append(given))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal.signal(signal.SIGINT, handler)
        if came and callable(handler):
            handler(*came[0])


def environment(index, threads):
    """Variables of the index-th process, {name: text}: its threads and, of several GPUs, its own.

    They have to be there before torch is imported.
    """
    variables = {"OMP_NUM_THREADS": str(threads)}
    count = torch.cuda.device_count()
    if count > 1:
        all_of_them = ",".join(map(str, range(count)))
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", all_of_them).split(",")
        variables["CUDA_VISIBLE_DEVICES"] = visible[index % count]
    return variables


def serve(theirs, study, threads):
    """In a process of its own: does the runs it is sent, and sends back how each ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    with contextlib.suppress(EOFError, BrokenPipeError):  # whoever sends has ended
        while True:
            theirs.send(attempt(study, *theirs.recv()))
            torch.cuda.empty_cache()  # for the other processes


def attempt(study, name, seed):
    """Why a run is not done, one line; None where it is. What it prints goes to output.log."""
    folder = study.folder(name, seed)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            stack.enter_context(folders.locked(folder / "claim"))
            log = stack.enter_context((folder / "output.log").open("a", buffering=1))
            stack.enter_context(contextlib.redirect_stdout(log))
            stack.enter_context(contextlib.redirect_stderr(log))
            try:
                study.run_once(name, seed)
            except Exception:
                traceback.print_exc()
                raise
    except Exception as error:
        return message_of(error) or f"{type(error).__name__}: {first_line(error)}"
    return None


@contextlib.contextmanager
def alone(folder):
    """Within the block, this process alone is in it; others wait. folder: made and removed."""
    while True:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(folders.locked(folder))
            except UserError as error:
                if AT_WORK not in str(error):
                    raise
                time.sleep(0.1)
                continue
            yield
            return
