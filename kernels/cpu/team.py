"""The thread team as LLVM IR: it walks a step's launch table on all threads, with barriers where launches conflict.

The C interface (every address and count is an int64)::

    void gc_run(ctl, records, n, nthreads, scratch, stride, words, times)   by the caller, as thread 0
    void gc_worker(ctl, tid)                                                in each further thread, up to gc_stop
    void gc_stop(ctl)

``ctl`` is 512 zeroed bytes, 64-byte aligned, of one team. Words on cache lines of their own:

    0   epoch: jobs published so far, -1 to stop
    8   the job: records, n, nthreads, scratch, stride, words
    16  barrier: threads that have arrived
    24  barrier: phase, one more each time it opens
    32  workers asleep
    40  the processor of each of the first 64 threads, 16 bits each

A record is four words: kernel, address of its words, 1 if a barrier comes before it, kind (0 call, 1 repeat, 2 branch:
`graphc.runtime_table` describes them). Thread t has the scratch memory ``scratch + t * stride``, and its words are
``t * words`` bytes behind those of thread 0, so that each thread counts its iterations and moves its arguments alone.
``times`` is 0 or n words, to which thread 0 adds the ns from the start of each record to that of the next. One thread
needs no worker and touches no ctl; otherwise nthreads - 1 workers must run (or start later).

Waiting: a barrier looks a hundred times (2 to 5 us) and then yields its processor at every look. A launch and its
barrier take a quarter of a microsecond where each thread has a processor; where threads share one, looking longer only
keeps the awaited thread from running (2,000 looks: 27 us a launch and more, 300: 4.6, 50: 1.6). An idle worker spins
for 50 us, yields for 1 ms, and then sleeps until the next job: an idle program costs nothing, and work after a short
pause starts at once. On Linux a worker sleeps on the epoch (futex, as pthread_cond_wait does), and whoever publishes a
job wakes it, some 50 us later. Elsewhere it looks every eighth of the time that it has been idle, at most 10 ms.

Place: threads that look and yield never sleep, so Linux, which chooses a processor when a thread wakes up, may leave
two of them on one for seconds while another is idle (seen with two threads beside other work: half of the speed). So
each worker compares its processor with those of the threads before it when it begins a job, and moves to a free one.
"""

from __future__ import annotations

from graphc.kernels.cpu.target import CpuTarget

__all__ = ["team_ir"]


def team_ir(target: CpuTarget) -> str:
    """The team's module for ``target``. Undefined symbols, of libc: sched_yield, clock_gettime, and sched_getcpu and
    syscall on Linux or else usleep."""
    if target.triple.startswith("x86_64"):
        declare, pause = "declare void @llvm.x86.sse2.pause()", "call void @llvm.x86.sse2.pause()"
    else:
        declare, pause = "declare void @llvm.aarch64.hint(i32)", "call void @llvm.aarch64.hint(i32 1)"
    monotonic = 6 if "darwin" in target.triple or "macos" in target.triple else 1
    system = _POLL + _ANYWHERE
    if "linux" in target.triple:
        system = _FUTEX + _PLACE
        for name, numbers in _SYSTEM_CALLS.items():
            system = system.replace(name, str(numbers[not target.triple.startswith("x86_64")]))
    team = _TEAM.replace("DECLARE_PAUSE", declare).replace("PAUSE", pause)
    return team.replace("CLOCK_MONOTONIC", str(monotonic)) + system


# On x86-64, and where Linux has its common numbers.
_SYSTEM_CALLS = {"SYS_FUTEX": (202, 98), "SYS_SETAFFINITY": (203, 122), "SYS_GETAFFINITY": (204, 123)}


_TEAM = """
declare i32 @sched_yield()
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
  call void @sleep_on(ptr %ctl, i64 %seen, i64 %waited)
  br label %look
leave:
  ret i64 %epoch
}

; The end of an iteration: where to go from here, in records. Arguments move on by a step, or, after the last iteration,
; back to where they began.
define internal i64 @repeat(ptr %words) {
entry:
  %left = load i64, ptr %words
  %count_at = getelementptr i64, ptr %words, i64 1
  %count = load i64, ptr %count_at
  %back_at = getelementptr i64, ptr %words, i64 2
  %back = load i64, ptr %back_at
  %moving_at = getelementptr i64, ptr %words, i64 3
  %moving = load i64, ptr %moving_at
  %pairs = getelementptr i64, ptr %words, i64 4
  %fewer = sub i64 %left, 1
  %done = icmp eq i64 %fewer, 0
  %reset = select i1 %done, i64 %count, i64 %fewer
  store i64 %reset, ptr %words
  %rewind = sub i64 1, %count
  %by = select i1 %done, i64 %rewind, i64 1
  br label %next
next:
  %k = phi i64 [ 0, %entry ], [ %following, %move ]
  %more = icmp slt i64 %k, %moving
  br i1 %more, label %move, label %leave
move:
  %at = mul i64 %k, 2
  %pair = getelementptr i64, ptr %pairs, i64 %at
  %distance = load i64, ptr %pair
  %stride_at = getelementptr i64, ptr %pair, i64 1
  %stride = load i64, ptr %stride_at
  %word = getelementptr i8, ptr %words, i64 %distance
  %old = load i64, ptr %word
  %change = mul i64 %stride, %by
  %new = add i64 %old, %change
  store i64 %new, ptr %word
  %following = add i64 %k, 1
  br label %next
leave:
  %jump = select i1 %done, i64 1, i64 %back
  ret i64 %jump
}

; Where a branch leads, in records.
define internal i64 @branch(ptr %words) {
entry:
  %test = load ptr, ptr %words
  %jump_at = getelementptr i64, ptr %words, i64 1
  %jump = load i64, ptr %jump_at
  %always = icmp eq ptr %test, null
  br i1 %always, label %leave, label %look
look:
  %byte = load i8, ptr %test
  %false = icmp eq i8 %byte, 0
  %chosen = select i1 %false, i64 %jump, i64 1
  br label %leave
leave:
  %by = phi i64 [ %jump, %entry ], [ %chosen, %look ]
  ret i64 %by
}

; Thread %tid's way through the records; %times is null except on thread 0. All threads leave together.
define internal void @walk(ptr %ctl, ptr %records, i64 %n, i64 %nthreads, i64 %scratch, i64 %stride, i64 %words,
                           ptr %times, i64 %tid) {
entry:
  %offset = mul i64 %stride, %tid
  %mine = add i64 %scratch, %offset
  %own = mul i64 %words, %tid
  %team = icmp ugt i64 %nthreads, 1
  %timed = icmp ne ptr %times, null
  %start = call i64 @now()
  br label %next
next:
  %i = phi i64 [ 0, %entry ], [ %target, %go ]
  %running = phi i64 [ 0, %entry ], [ %current, %go ]
  %since = phi i64 [ %start, %entry ], [ %stamp, %go ]
  %more = icmp slt i64 %i, %n
  %at = mul i64 %i, 4
  %record = getelementptr i64, ptr %records, i64 %at
  br i1 %more, label %ordered, label %end
ordered:
  %flag_at = getelementptr i64, ptr %record, i64 2
  %flag = load i64, ptr %flag_at
  %conflict = icmp ne i64 %flag, 0
  %wait = and i1 %conflict, %team
  br i1 %wait, label %meet, label %ready
meet:
  call void @barrier(ptr %ctl, i64 %nthreads)
  br label %ready
ready:
  br i1 %timed, label %clock, label %do
clock:
  %time = call i64 @now()
  call void @spent(ptr %times, i64 %running, i64 %since, i64 %time)
  br label %do
do:
  %current = phi i64 [ %running, %ready ], [ %i, %clock ]
  %stamp = phi i64 [ %since, %ready ], [ %time, %clock ]
  %args_at = getelementptr i64, ptr %record, i64 1
  %shared = load i64, ptr %args_at
  %args = add i64 %shared, %own
  %args_ptr = inttoptr i64 %args to ptr
  %kind_at = getelementptr i64, ptr %record, i64 3
  %kind = load i64, ptr %kind_at
  switch i64 %kind, label %call [ i64 1, label %again
                                  i64 2, label %decide ]
call:
  %kernel = load ptr, ptr %record
  call void %kernel(i64 %args, i64 %mine, i64 %tid, i64 %nthreads)
  br label %go
again:
  %back = call i64 @repeat(ptr %args_ptr)
  br label %go
decide:
  %chosen = call i64 @branch(ptr %args_ptr)
  br label %go
go:
  %jump = phi i64 [ 1, %call ], [ %back, %again ], [ %chosen, %decide ]
  %target = add i64 %i, %jump
  br label %next
end:
  br i1 %team, label %last_meet, label %last_ready
last_meet:
  call void @barrier(ptr %ctl, i64 %nthreads)
  br label %last_ready
last_ready:
  %any = icmp sgt i64 %n, 0
  %count = and i1 %timed, %any
  br i1 %count, label %last_clock, label %leave
last_clock:
  %last = call i64 @now()
  call void @spent(ptr %times, i64 %running, i64 %since, i64 %last)
  br label %leave
leave:
  ret void
}

; Add the time since %since to that of record %running.
define internal void @spent(ptr %times, i64 %running, i64 %since, i64 %time) {
  %at = getelementptr i64, ptr %times, i64 %running
  %old = load i64, ptr %at
  %more = sub i64 %time, %since
  %new = add i64 %old, %more
  store i64 %new, ptr %at
  ret void
}

; Publish the job, do thread 0's part, return when all are done.
define void @gc_run(ptr %ctl, ptr %records, i64 %n, i64 %nthreads, i64 %scratch, i64 %stride, i64 %words,
                    ptr %times) {
entry:
  %team = icmp ugt i64 %nthreads, 1
  br i1 %team, label %publish, label %work
publish:
  %job = getelementptr i64, ptr %ctl, i64 8
  %n_at = getelementptr i64, ptr %job, i64 1
  %nthreads_at = getelementptr i64, ptr %job, i64 2
  %scratch_at = getelementptr i64, ptr %job, i64 3
  %stride_at = getelementptr i64, ptr %job, i64 4
  %words_at = getelementptr i64, ptr %job, i64 5
  store ptr %records, ptr %job
  store i64 %n, ptr %n_at
  store i64 %nthreads, ptr %nthreads_at
  store i64 %scratch, ptr %scratch_at
  store i64 %stride, ptr %stride_at
  store i64 %words, ptr %words_at
  call void @take_place(ptr %ctl, i64 0)
  %epoch = load atomic i64, ptr %ctl monotonic, align 8
  %next = add i64 %epoch, 1
  call void @announce(ptr %ctl, i64 %next)
  br label %work
work:
  call void @walk(ptr %ctl, ptr %records, i64 %n, i64 %nthreads, i64 %scratch, i64 %stride, i64 %words, ptr %times,
                  i64 0)
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
  %words_at = getelementptr i64, ptr %job, i64 5
  %records = load ptr, ptr %job
  %n = load i64, ptr %n_at
  %nthreads = load i64, ptr %nthreads_at
  %scratch = load i64, ptr %scratch_at
  %stride = load i64, ptr %stride_at
  %words = load i64, ptr %words_at
  call void @take_place(ptr %ctl, i64 %tid)
  call void @walk(ptr %ctl, ptr %records, i64 %n, i64 %nthreads, i64 %scratch, i64 %stride, i64 %words, ptr null,
                  i64 %tid)
  br label %idle
leave:
  ret void
}

define void @gc_stop(ptr %ctl) {
  call void @announce(ptr %ctl, i64 -1)
  ret void
}
"""

# Between jobs: @sleep_on returns when the epoch may differ from %seen; @announce sets it.

_FUTEX = """
declare i64 @syscall(i64, ...)

; The kernel compares the epoch (its low half) with %seen before it lets the thread sleep, and the number of sleepers
; rises before and is read after the epoch changes, in one order for all threads: so no announcement is missed.
define internal void @sleep_on(ptr %ctl, i64 %seen, i64 %waited) {
  %asleep = getelementptr i64, ptr %ctl, i64 32
  atomicrmw add ptr %asleep, i64 1 seq_cst
  %low = trunc i64 %seen to i32
  call i64 (i64, ...) @syscall(i64 SYS_FUTEX, ptr %ctl, i32 128, i32 %low, ptr null)  ; FUTEX_WAIT_PRIVATE
  atomicrmw sub ptr %asleep, i64 1 seq_cst
  ret void
}

define internal void @announce(ptr %ctl, i64 %epoch) {
entry:
  store atomic i64 %epoch, ptr %ctl seq_cst, align 8
  %asleep = getelementptr i64, ptr %ctl, i64 32
  %count = load atomic i64, ptr %asleep seq_cst, align 8
  %any = icmp ne i64 %count, 0
  br i1 %any, label %wake, label %leave
wake:
  call i64 (i64, ...) @syscall(i64 SYS_FUTEX, ptr %ctl, i32 129, i32 2147483647)  ; FUTEX_WAKE_PRIVATE, all
  br label %leave
leave:
  ret void
}
"""

_POLL = """
declare i32 @usleep(i32)

define internal void @sleep_on(ptr %ctl, i64 %seen, i64 %waited) {
  %eighth = udiv i64 %waited, 8000
  %long = icmp ugt i64 %eighth, 10000
  %capped = select i1 %long, i64 10000, i64 %eighth
  %us = trunc i64 %capped to i32
  call i32 @usleep(i32 %us)
  ret void
}

define internal void @announce(ptr %ctl, i64 %epoch) {
  store atomic i64 %epoch, ptr %ctl release, align 8
  ret void
}
"""

# At the beginning of a job: @take_place sees to it that thread %tid has a processor to itself, if there is one.

_PLACE = """
declare i32 @sched_getcpu()

define internal void @take_place(ptr %ctl, i64 %tid) {
entry:
  %known = icmp ult i64 %tid, 64
  br i1 %known, label %ask, label %leave
ask:
  %cpu = call i32 @sched_getcpu()
  %mine = trunc i32 %cpu to i16
  %places = getelementptr i64, ptr %ctl, i64 40
  %place = getelementptr i16, ptr %places, i64 %tid
  store atomic i16 %mine, ptr %place monotonic, align 2
  br label %next
next:
  %t = phi i64 [ 0, %ask ], [ %following, %compare ]
  %more = icmp ult i64 %t, %tid
  br i1 %more, label %compare, label %leave
compare:
  %at = getelementptr i16, ptr %places, i64 %t
  %taken = load atomic i16, ptr %at monotonic, align 2
  %same = icmp eq i16 %taken, %mine
  %following = add i64 %t, 1
  br i1 %same, label %move, label %next
move:
  call void @move_away(ptr %places, i64 %tid)
  br label %leave
leave:
  ret void
}

; Ask for the processors that this thread may use but for those of the threads before it, which moves it there at once,
; and then for all of them again. Where none is left, the kernel refuses, and the thread stays.
define internal void @move_away(ptr %places, i64 %tid) {
entry:
  %all = alloca [16 x i64]  ; 1,024 processors
  %free = alloca [16 x i64]
  store [16 x i64] zeroinitializer, ptr %all
  %size = call i64 (i64, ...) @syscall(i64 SYS_GETAFFINITY, i64 0, i64 128, ptr %all)
  %known = icmp sgt i64 %size, 0
  br i1 %known, label %copy, label %leave
copy:
  %mask = load [16 x i64], ptr %all
  store [16 x i64] %mask, ptr %free
  br label %next
next:
  %t = phi i64 [ 0, %copy ], [ %following, %next ]
  %at = getelementptr i16, ptr %places, i64 %t
  %taken = load atomic i16, ptr %at monotonic, align 2
  %cpu = zext i16 %taken to i64
  %word = udiv i64 %cpu, 64
  %inside = and i64 %word, 15
  %word_at = getelementptr i64, ptr %free, i64 %inside
  %bit = and i64 %cpu, 63
  %one = shl i64 1, %bit
  %others = xor i64 %one, -1
  %old = load i64, ptr %word_at
  %new = and i64 %old, %others
  store i64 %new, ptr %word_at
  %following = add i64 %t, 1
  %more = icmp ult i64 %following, %tid
  br i1 %more, label %next, label %ask
ask:
  call i64 (i64, ...) @syscall(i64 SYS_SETAFFINITY, i64 0, i64 128, ptr %free)
  call i64 (i64, ...) @syscall(i64 SYS_SETAFFINITY, i64 0, i64 128, ptr %all)
  br label %leave
leave:
  ret void
}
"""

_ANYWHERE = """
define internal void @take_place(ptr %ctl, i64 %tid) {
  ret void
}
"""
