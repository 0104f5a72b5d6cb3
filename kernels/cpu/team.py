"""The thread team as LLVM IR: it walks a step's launches on all threads, with barriers where launches conflict.

The C interface (every address and count is an int64)::

    void gc_run(ctl, launches, n, nthreads, scratch, stride, times)   by the caller, as thread 0
    void gc_worker(ctl, tid)                                          in each further thread; returns after gc_stop
    void gc_stop(ctl)

``ctl`` is 512 zeroed bytes, 64-byte aligned, of one team. Words on cache lines of their own:

    0   epoch: jobs published so far, -1 to stop
    8   the job: launches, n, nthreads, scratch, stride
    16  barrier: threads that have arrived
    24  barrier: phase, one more each time it opens

A launch is four words: kernel, argument table, 1 if a barrier comes before it, unused. Thread t has the scratch memory
``scratch + t * stride``. ``times`` is 0 or takes n + 1 time stamps of thread 0, in ns: before each launch, and at the
end. One thread needs no worker and touches no ctl; otherwise nthreads - 1 workers must run (or start later).

Waiting: a barrier looks a hundred times (2 to 5 us) and then yields its processor at every look. A launch and its
barrier take a quarter of a microsecond where each thread has a processor; where threads share one, looking longer only
keeps the awaited thread from running (2,000 looks: 27 us a launch and more, 300: 4.6, 50: 1.6). An idle worker spins
for 50 us, yields for 1 ms, and then sleeps an eighth of the time that it has been idle, at most 10 ms: an idle program
costs nothing that shows, and work after a short pause starts at once.
"""

from __future__ import annotations

from graphc.kernels.cpu.target import CpuTarget

__all__ = ["team_ir"]


def team_ir(target: CpuTarget) -> str:
    """The team's module for ``target``. Undefined symbols: sched_yield, usleep and clock_gettime of libc."""
    if target.triple.startswith("x86_64"):
        declare, pause = "declare void @llvm.x86.sse2.pause()", "call void @llvm.x86.sse2.pause()"
    else:
        declare, pause = "declare void @llvm.aarch64.hint(i32)", "call void @llvm.aarch64.hint(i32 1)"
    monotonic = 6 if "darwin" in target.triple or "macos" in target.triple else 1
    return _TEAM.replace("DECLARE_PAUSE", declare).replace("PAUSE", pause).replace("CLOCK_MONOTONIC", str(monotonic))


_TEAM = """
declare i32 @sched_yield()
declare i32 @usleep(i32)
declare i32 @clock_gettime(i32, ptr)
DECLARE_PAUSE

; Monotonic time in ns.
define internal i64 @now() {
  %time = alloca { i64, i64 }
  call i32 @clock_gettime(i32 CLOCK_MONOTONIC, ptr %time)
  %seconds = load i64, ptr %time
  %rest_at = getelementptr i64, ptr %time, i64 1
  %rest = load i64, ptr %rest_at
  %scaled = mul i64 %seconds, 1000000000
  %ns = add i64 %scaled, %rest
  ret i64 %ns
}

; Wait for all threads. The last to arrive opens the next phase; the phase cannot change before this thread arrives.
define internal void @barrier(ptr %ctl, i64 %nthreads) {
entry:
  %arrived = getelementptr i64, ptr %ctl, i64 16
  %phase = getelementptr i64, ptr %ctl, i64 24
  %mine = load atomic i64, ptr %phase monotonic, align 8
  %before = atomicrmw add ptr %arrived, i64 1 acq_rel
  %count = add i64 %before, 1
  %last = icmp eq i64 %count, %nthreads
  br i1 %last, label %open, label %look
open:
  store atomic i64 0, ptr %arrived monotonic, align 8
  %next = add i64 %mine, 1
  store atomic i64 %next, ptr %phase release, align 8
  ret void
look:
  %looks = phi i64 [ 0, %entry ], [ %more, %spin ], [ %more, %yield ]
  %more = add i64 %looks, 1
  %current = load atomic i64, ptr %phase acquire, align 8
  %closed = icmp eq i64 %current, %mine
  br i1 %closed, label %wait, label %leave
wait:
  %patient = icmp ult i64 %looks, 100
  br i1 %patient, label %spin, label %yield
spin:
  PAUSE
  br label %look
yield:
  call i32 @sched_yield()
  br label %look
leave:
  ret void
}

; The epoch once it differs from %seen.
define internal i64 @next_epoch(ptr %ctl, i64 %seen) {
entry:
  %start = call i64 @now()
  br label %look
look:
  %epoch = load atomic i64, ptr %ctl acquire, align 8
  %idle = icmp eq i64 %epoch, %seen
  br i1 %idle, label %wait, label %leave
wait:
  %time = call i64 @now()
  %waited = sub i64 %time, %start
  %short = icmp ult i64 %waited, 50000
  br i1 %short, label %spin, label %longer
spin:
  PAUSE
  br label %look
longer:
  %medium = icmp ult i64 %waited, 1000000
  br i1 %medium, label %yield, label %sleep
yield:
  call i32 @sched_yield()
  br label %look
sleep:
  %eighth = udiv i64 %waited, 8000
  %long = icmp ugt i64 %eighth, 10000
  %capped = select i1 %long, i64 10000, i64 %eighth
  %us = trunc i64 %capped to i32
  call i32 @usleep(i32 %us)
  br label %look
leave:
  ret i64 %epoch
}

; Thread %tid's way through the launches; %times is null except on thread 0. All threads leave together.
define internal void @walk(ptr %ctl, ptr %launches, i64 %n, i64 %nthreads, i64 %scratch, i64 %stride, ptr %times,
                           i64 %tid) {
entry:
  %offset = mul i64 %stride, %tid
  %mine = add i64 %scratch, %offset
  %team = icmp ugt i64 %nthreads, 1
  %timed = icmp ne ptr %times, null
  br label %next
next:
  %i = phi i64 [ 0, %entry ], [ %following, %launch ]
  %more = icmp slt i64 %i, %n
  %at = mul i64 %i, 4
  %record = getelementptr i64, ptr %launches, i64 %at
  br i1 %more, label %ordered, label %end
ordered:
  %flag_at = getelementptr i64, ptr %record, i64 2
  %flag = load i64, ptr %flag_at
  %conflict = icmp ne i64 %flag, 0
  %wait = and i1 %conflict, %team
  br i1 %wait, label %meet, label %stamp
meet:
  call void @barrier(ptr %ctl, i64 %nthreads)
  br label %stamp
stamp:
  br i1 %timed, label %clock, label %launch
clock:
  %time = call i64 @now()
  %time_at = getelementptr i64, ptr %times, i64 %i
  store i64 %time, ptr %time_at
  br label %launch
launch:
  %kernel = load ptr, ptr %record
  %args_at = getelementptr i64, ptr %record, i64 1
  %args = load i64, ptr %args_at
  call void %kernel(i64 %args, i64 %mine, i64 %tid, i64 %nthreads)
  %following = add i64 %i, 1
  br label %next
end:
  br i1 %team, label %last_meet, label %last_stamp
last_meet:
  call void @barrier(ptr %ctl, i64 %nthreads)
  br label %last_stamp
last_stamp:
  br i1 %timed, label %last_clock, label %leave
last_clock:
  %end_time = call i64 @now()
  %end_at = getelementptr i64, ptr %times, i64 %n
  store i64 %end_time, ptr %end_at
  br label %leave
leave:
  ret void
}

; Publish the job, do thread 0's part, return when all are done.
define void @gc_run(ptr %ctl, ptr %launches, i64 %n, i64 %nthreads, i64 %scratch, i64 %stride, ptr %times) {
entry:
  %team = icmp ugt i64 %nthreads, 1
  br i1 %team, label %publish, label %work
publish:
  %job = getelementptr i64, ptr %ctl, i64 8
  %n_at = getelementptr i64, ptr %job, i64 1
  %nthreads_at = getelementptr i64, ptr %job, i64 2
  %scratch_at = getelementptr i64, ptr %job, i64 3
  %stride_at = getelementptr i64, ptr %job, i64 4
  store ptr %launches, ptr %job
  store i64 %n, ptr %n_at
  store i64 %nthreads, ptr %nthreads_at
  store i64 %scratch, ptr %scratch_at
  store i64 %stride, ptr %stride_at
  %epoch = load atomic i64, ptr %ctl monotonic, align 8
  %next = add i64 %epoch, 1
  store atomic i64 %next, ptr %ctl release, align 8
  br label %work
work:
  call void @walk(ptr %ctl, ptr %launches, i64 %n, i64 %nthreads, i64 %scratch, i64 %stride, ptr %times, i64 0)
  ret void
}

; Do thread %tid's part of every job until the epoch is -1.
define void @gc_worker(ptr %ctl, i64 %tid) {
entry:
  br label %idle
idle:
  %seen = phi i64 [ 0, %entry ], [ %epoch, %work ]
  %epoch = call i64 @next_epoch(ptr %ctl, i64 %seen)
  %stop = icmp eq i64 %epoch, -1
  br i1 %stop, label %leave, label %work
work:
  %job = getelementptr i64, ptr %ctl, i64 8
  %n_at = getelementptr i64, ptr %job, i64 1
  %nthreads_at = getelementptr i64, ptr %job, i64 2
  %scratch_at = getelementptr i64, ptr %job, i64 3
  %stride_at = getelementptr i64, ptr %job, i64 4
  %launches = load ptr, ptr %job
  %n = load i64, ptr %n_at
  %nthreads = load i64, ptr %nthreads_at
  %scratch = load i64, ptr %scratch_at
  %stride = load i64, ptr %stride_at
  call void @walk(ptr %ctl, ptr %launches, i64 %n, i64 %nthreads, i64 %scratch, i64 %stride, ptr null, i64 %tid)
  br label %idle
leave:
  ret void
}

define void @gc_stop(ptr %ctl) {
  store atomic i64 -1, ptr %ctl release, align 8
  ret void
}
"""
